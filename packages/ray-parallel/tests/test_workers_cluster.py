"""A cluster of this machine: quiet on the network, one at a time, and gone without a trace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_listening import LOOPBACK, listening_addresses

from ray_parallel.workers import (
    Cluster,
    ClusterError,
    GroupOptions,
    GroupStateError,
    ObjectStoreSizeError,
    Recipe,
    SharedWeights,
    WeightsError,
    WorkerGroup,
    connect_cluster,
    start_cluster,
)
from ray_parallel.workers.cluster._processes import Process, descendants

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process leaves behind is read from /proc"),
]


def leftovers() -> tuple[set[str], set[str]]:
    """Temporary folders of clusters, and what lies in shared memory."""
    return (
        {path.name for path in Path("/tmp").glob("ray-parallel-*")},
        {path.name for path in Path("/dev/shm").iterdir()},
    )


def test_a_cluster_leaves_nothing_behind() -> None:
    environment, before = dict(os.environ), leftovers()
    earlier = set(descendants(os.getpid()))
    with start_cluster(workers=2, shared_bytes=16 << 20) as cluster:
        assert cluster.folder is not None
        assert cluster.folder.exists()
        weights = SharedWeights.from_tensors({"a": torch.ones(1 << 20)}, room=cluster.room)
        workers = WorkerGroup(cluster, Recipe(factory="worker_tasks:build", weights=weights))
        workers.start()
        started = set(descendants(os.getpid())) - earlier
        assert len(started) > 4
        for pid, addresses in listening_addresses(one.pid for one in started | {this_process()}).items():
            assert addresses <= LOOPBACK, f"{pid} listens on {addresses}"
    # Neither the group nor the weights were closed: the cluster is what counts.
    assert [one for one in started if one.is_alive()] == []
    assert leftovers() == before
    assert dict(os.environ) == environment
    # Ray starts a cluster by itself, open to the network, when it is asked for anything without one: nothing asks.
    for use in (workers.start, workers.restart, workers.sharing, lambda: workers.call("worker_tasks:whoami")):
        with pytest.raises(GroupStateError, match="on a cluster that is running"):
            use()
    for share in (weights.open, lambda: SharedWeights.from_tensors({"a": torch.ones(1)}, room=cluster.room)):
        with pytest.raises(WeightsError, match="have no cluster whose store holds them"):
            share()
    workers.close()
    weights.close()
    assert set(descendants(os.getpid())) - earlier == set()


def test_every_path_that_a_cluster_makes_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray opens its folders and sockets to everybody, and would keep a token in the home for all to read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    roots = (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"))
    before = {path for root in roots for path in root.iterdir()}
    with start_cluster(workers=1) as cluster, WorkerGroup(cluster, options=GroupOptions(workers=1)) as workers:
        workers.start()
        assert cluster.folder is not None
        assert cluster.folder.stat().st_mode & 0o777 == 0o700
        opened = {Path(name) for one in descendants(os.getpid()) for name in open_files(one.pid)}
        outside = [path for path in opened if not path.is_relative_to(cluster.folder) and path.exists()]
        assert [path for path in outside if any(path.is_relative_to(root) for root in roots)] == []
        made = {path for root in roots for path in root.iterdir()} - before
        assert {path for path in made if "ray" in path.name or "plasma" in path.name} == {cluster.folder}
        assert [path for path in cluster.folder.iterdir() if path.is_file() and path.stat().st_mode & 0o077] == []
    assert [*tmp_path.iterdir()] == []


def open_files(pid: int) -> list[str]:
    """Paths that a process has open for writing, its mappings included."""
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            flags = (link.parent.parent / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                found.append(str(link.readlink()))
    return [name for name in found if name.startswith("/")]


def this_process() -> Process:
    return Process(os.getpid(), 0)


def test_a_driver_under_uv_run_has_its_workers_in_its_own_environment() -> None:
    """Meaningful where the tests themselves are started by `uv run`, as in CI."""
    script = """
from ray_parallel.workers import start_cluster
with start_cluster(workers=1):
    import ray
    print(ray.get_runtime_context().runtime_env)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "{}"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with start_cluster(workers=1, ray_object_store_gb=0.1) as cluster:
        yield cluster


def test_a_process_has_one_cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    untyped: Any = sys.modules["ray"]
    # As in a process that connected by itself, and then asks for a cluster of this package.
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    environment = dict(os.environ)
    address = untyped.get_runtime_context().gcs_address
    with pytest.raises(ClusterError, match="already connected to a Ray cluster, and Ray allows one"):
        start_cluster()
    with pytest.raises(ClusterError, match="already connected to a Ray cluster, and Ray allows one"):
        connect_cluster(address)
    assert dict(os.environ) == environment
    assert not running.is_closed


def test_the_current_cluster_can_be_used_and_left(running: Cluster) -> None:
    with connect_cluster("current") as borrowed:
        assert not borrowed.is_local
        assert borrowed.room.capacity_bytes == running.room.capacity_bytes
    assert not running.is_closed


def test_a_group_works_on_a_cluster_that_it_did_not_start(running: Cluster) -> None:
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if Path(path).is_dir())
    options = GroupOptions(workers=1, environment={"PYTHONPATH": paths})
    with connect_cluster("current") as borrowed, WorkerGroup(borrowed, Recipe(), options) as workers:
        assert workers.call("worker_tasks:whoami")[0]["size"] == 1


def test_the_store_refuses_what_it_cannot_hold_before_anything_is_copied(running: Cluster) -> None:
    assert running.folder is not None
    before = disk_bytes(running.folder)
    with pytest.raises(ObjectStoreSizeError, match=r"the weights need 128 MiB but the object store of 102 MiB has"):
        SharedWeights.from_tensors({"a": torch.zeros(32 << 20)}, room=running.room)
    assert running.room.taken_bytes == 0
    # Ray left to itself would have written them to the disk, full or not.
    assert disk_bytes(running.folder) - before < 1 << 20
    with SharedWeights.from_tensors({"a": torch.zeros(1 << 20)}, room=running.room) as weights:
        assert weights.open()["a"].shape == (1 << 20,)


def test_a_store_that_is_full_of_weights_refuses_more(running: Cluster) -> None:
    with SharedWeights.from_tensors({"a": torch.zeros(15 << 20)}, room=running.room) as first:
        with pytest.raises(ObjectStoreSizeError):
            SharedWeights.from_tensors({"b": torch.zeros(15 << 20)}, room=running.room)
        assert first.open()["a"].sum() == 0
    with SharedWeights.from_tensors({"b": torch.zeros(15 << 20)}, room=running.room) as second:
        assert second.open()["b"].sum() == 0


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
