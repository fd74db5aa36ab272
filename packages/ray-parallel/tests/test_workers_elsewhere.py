"""What is done elsewhere than on Linux, as far as it can be shown here: less is known, and nothing is made up."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from shared_examples import write_file

from ray_parallel.workers import SharedWeights
from ray_parallel.workers.cluster._folder import ClusterFolder, remove_left_behind
from ray_parallel.workers.cluster._processes import descendants, end
from ray_parallel.workers.weights._sharing import measure
from ray_parallel.workers.weights._sizes import memory_free_bytes, shm_free_bytes

elsewhere = pytest.mark.parametrize("platform", ["darwin", "win32"])


@elsewhere
def test_the_kernel_tells_nothing_of_processes_and_pages(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert descendants(os.getppid()) == ()
    assert end(descendants(os.getppid()), patience_seconds=60) == ()
    assert measure([(0, 1 << 40)]) is None


def test_a_mac_tells_what_is_installed_and_windows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory_free_bytes() <= installed
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory_free_bytes() == installed
    monkeypatch.setattr(sys, "platform", "win32")
    assert memory_free_bytes() == sys.maxsize


@pytest.mark.parametrize(("platform", "folder"), [("linux", "/dev/shm"), ("darwin", "/tmp"), ("win32", "/tmp")])
def test_the_room_of_the_store_is_that_of_its_folder(
    platform: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage("/")
    sizes = {"/dev/shm": room._replace(free=3), "/tmp": room._replace(free=5)}
    monkeypatch.setattr(shutil, "disk_usage", sizes.__getitem__)
    monkeypatch.setattr(sys, "platform", platform)
    assert shm_free_bytes() == sizes[folder].free


@elsewhere
def test_a_file_is_mapped_for_reading_and_its_pages_are_copied_when_written(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "model.safetensors", {"a": torch.arange(6.0)})
    weights = SharedWeights.from_file(path)
    monkeypatch.setattr(sys, "platform", platform)
    mine, other = weights.open(), weights.open()
    mine["a"].zero_()
    assert mine["a"].tolist() == [0.0] * 6
    assert other["a"].tolist() == [*range(6)]
    assert SharedWeights.from_file(path).open()["a"].tolist() == [*range(6)]


def test_without_locks_no_folder_is_taken_for_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    folder = ClusterFolder(tmp_path)
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"in-use-soon", "token"}, "an open file has no new name there"
    (tmp_path / "ray-parallel-old").mkdir()
    (tmp_path / "ray-parallel-old" / "in-use").touch()
    assert remove_left_behind(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {folder.path.name, "ray-parallel-old"}
    folder.remove()
    assert not folder.path.exists()


def test_a_long_temporary_folder_is_used_where_sockets_have_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(long))
    monkeypatch.setattr(sys, "platform", "win32")
    folder = ClusterFolder()
    assert folder.path.parent == long
    folder.remove()
