"""What a cluster leaves behind, and who removes it: folders in use and left behind, and the watcher."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_examples import HOLD, running

from ray_parallel.workers.cluster import _folder
from ray_parallel.workers.cluster._folder import ClusterFolder, remove_left_behind
from ray_parallel.workers.cluster._processes import Process, Watcher, descendants, process

OWNER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from _folder import ClusterFolder
print(ClusterFolder(Path(sys.argv[1])).path, flush=True)
time.sleep(60)
"""

WORKERS = Path(remove_left_behind.__code__.co_filename).parent

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")


@linux
def test_the_watcher_tidies_up_when_its_pipe_ends(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "socket").touch()
    with running(HOLD, "0") as (_, found):
        watcher = Watcher(folder, [found])
        with pytest.raises(subprocess.TimeoutExpired):
            watcher._process.wait(timeout=0.3)
        assert found.is_alive()
        assert folder.exists()
        assert watcher._process.stdin is not None
        watcher._process.stdin.close()
        watcher._process.wait(timeout=30)
        assert not found.is_alive()
        assert not folder.exists()


@linux
def test_the_watcher_leaves_a_later_process_of_that_number_alone(tmp_path: Path) -> None:
    folder = tmp_path / "folder with a blank"
    folder.mkdir()
    with running(HOLD, "0") as (_, found):
        watcher = Watcher(folder, [Process(found.pid, found.started - 1)])
        watcher._process.communicate(timeout=30)
        assert not folder.exists()
        assert found.is_alive()


@linux
def test_the_watcher_is_none_of_the_processes_of_the_folder(tmp_path: Path) -> None:
    """Those are found by the folder in their command lines, and ended while the watcher still watches."""
    watcher = Watcher(tmp_path, [])
    mine = process(watcher._process.pid)
    assert mine is not None
    assert mine in descendants(os.getpid())
    assert str(tmp_path) not in mine.command_line()
    watcher.dismiss()


@linux
def test_a_dismissed_watcher_does_nothing(tmp_path: Path) -> None:
    with running(HOLD, "0") as (_, found):
        watcher = Watcher(tmp_path, [found])
        watcher.dismiss()
        assert watcher._process.poll() is not None
        assert found.is_alive()
        assert tmp_path.exists()


def test_a_folder_is_removed_once_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path)
    (folder.path / "session" / "logs").mkdir(parents=True)
    assert folder.path.parent == tmp_path
    folder.remove()
    assert not folder.path.exists()
    folder.remove()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_folder_in_use_stays_and_one_left_behind_goes(tmp_path: Path) -> None:
    used = ClusterFolder(tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-I", "-c", OWNER, str(tmp_path), str(WORKERS)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    left = Path(owner.stdout.readline().strip())
    assert left.parent == tmp_path
    (tmp_path / "ray-parallel-of-somebody").mkdir()
    assert remove_left_behind(tmp_path) == []
    owner.kill()
    owner.communicate()
    assert remove_left_behind(tmp_path) == [left]
    assert not left.exists()
    assert used.path.exists()
    assert (tmp_path / "ray-parallel-of-somebody").exists()
    used.remove()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_folder_is_never_there_without_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that starts a cluster at the same moment looks for folders that were left behind."""
    lock = _folder._try_lock
    seen: list[list[Path]] = []

    def meanwhile(descriptor: int) -> bool:
        with monkeypatch.context() as undone:
            undone.setattr(_folder, "_try_lock", lock)
            seen.append(remove_left_behind(tmp_path))
        return lock(descriptor)

    monkeypatch.setattr(_folder, "_try_lock", meanwhile)
    folder = ClusterFolder(tmp_path)
    assert seen == [[]]
    assert folder.path.exists()
    assert remove_left_behind(tmp_path) == []
    folder.remove()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_many_owners_at_once_keep_their_folders(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def own() -> list[ClusterFolder]:
        start.wait()
        return [ClusterFolder(tmp_path) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        folders = [folder for made in [pool.submit(own) for _ in range(8)] for folder in made.result()]
    assert len({folder.path for folder in folders}) == 32
    assert [folder for folder in folders if not folder.path.exists()] == []
    for folder in folders:
        folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_still_written_into_a_folder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ClusterFolder(tmp_path)
    remove, tries = shutil.rmtree, []

    def busy(path: Path) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    folder.remove()
    assert tries == [folder.path] * 3
    assert not folder.path.exists()
    stuck = ClusterFolder(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(errno.ENOTEMPTY, "not empty")))
    with pytest.raises(OSError, match="not empty"):
        stuck.remove(patience_seconds=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_cannot_be_removed_yet_is_left_to_the_next_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that outlives its driver may still write into the folder for a while."""
    left = tmp_path / "ray-parallel-old"
    (left / "session").mkdir(parents=True)
    for name in ("in-use", "a-log", "zebra"):
        (left / name).touch()
    remove = shutil.rmtree

    def busy(path: Path) -> None:
        if path.name == "session":
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", busy)
        assert remove_left_behind(tmp_path) == []
    assert (left / "in-use").exists(), "without it nobody could tell that the folder is nobody's"
    assert remove_left_behind(tmp_path) == [left]
    assert not left.exists()


def test_a_new_folder_takes_away_those_left_behind(tmp_path: Path) -> None:
    (tmp_path / "ray-parallel-old").mkdir()
    (tmp_path / "ray-parallel-old" / "in-use").touch()
    new = ClusterFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.path.name]
    new.remove()


def test_the_path_is_short_enough_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / ("long" * 10)))
    folder = ClusterFolder()
    assert len(str(folder.path)) < 40
    folder.remove()
