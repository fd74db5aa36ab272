"""Folders and processes of a cluster: found, ended and removed, with real ones of each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_parallel.workers import _folder
from ray_parallel.workers._folder import ClusterFolder, remove_left_behind
from ray_parallel.workers._processes import Process, Watcher, descendants, end, process

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
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


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(SLEEPER)
    # A process that has just begun another program has no command line for a moment.
    while not alive(running.pid).command_line():
        time.sleep(0.01)
    yield running
    running.kill()
    running.wait()


def alive(pid: int) -> Process:
    found = process(pid)
    assert found is not None
    return found


@linux
def test_a_process_is_told_from_a_later_one_of_its_number(sleeper: subprocess.Popen[bytes]) -> None:
    found = alive(sleeper.pid)
    assert found.is_alive()
    assert "time.sleep(60)" in found.command_line()
    assert not Process(found.pid, found.started + 1).is_alive()
    sleeper.kill()
    sleeper.wait()
    assert not found.is_alive()
    assert found.command_line() == ""
    assert process(sleeper.pid) is None


@linux
def test_one_that_ended_but_was_not_collected_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    found = alive(sleeper.pid)
    sleeper.kill()
    give_up = time.monotonic() + 10
    while found.is_alive() and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not found.is_alive()


@linux
def test_children_of_children_are_found() -> None:
    code = f"import subprocess, sys; p = subprocess.Popen({SLEEPER!r}); print(p.pid, flush=True); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    grandchild = alive(int(parent.stdout.readline()))
    below = descendants(os.getpid())
    assert {alive(parent.pid), grandchild} <= set(below)
    assert end([alive(parent.pid), grandchild], patience_seconds=0.1) == (alive(parent.pid), grandchild)
    parent.communicate()
    end([grandchild], patience_seconds=10)
    assert not grandchild.is_alive()


@linux
def test_ending_waits_for_those_that_end_by_themselves() -> None:
    short = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(0.3)"])
    assert end([alive(short.pid)], patience_seconds=30) == ()
    assert short.wait() == 0


def test_nothing_to_end_takes_no_time() -> None:
    began = time.monotonic()
    assert end([], patience_seconds=60) == ()
    assert time.monotonic() - began < 1


@linux
def test_the_watcher_tidies_up_when_its_pipe_ends(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "socket").touch()
    found = alive(sleeper.pid)
    watcher = Watcher(folder, [found])
    time.sleep(0.3)
    assert found.is_alive()
    assert folder.exists()
    assert watcher._process.stdin is not None
    watcher._process.stdin.close()
    watcher._process.wait(timeout=30)
    assert not found.is_alive()
    assert not folder.exists()


@linux
def test_a_dismissed_watcher_does_nothing(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    watcher = Watcher(tmp_path, [alive(sleeper.pid)])
    watcher.dismiss()
    assert watcher._process.poll() is not None
    assert alive(sleeper.pid).is_alive()
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
