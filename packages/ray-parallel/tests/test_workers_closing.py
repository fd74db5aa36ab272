"""What is closed while it is at work: it says so, ends what it began, and starts nothing again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from ray_parallel.workers import (
    Cluster,
    ClusterError,
    GroupOptions,
    GroupStateError,
    Progress,
    Recipe,
    SharedWeights,
    WeightsError,
    WorkerGroup,
    connect_cluster,
    start_cluster,
)
from ray_parallel.workers._processes import descendants

pytestmark = pytest.mark.slow

ALONE = GroupOptions(workers=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of this module alone, since its last test closes it."""
    with start_cluster(workers=1, ray_object_store_gb=0.1) as started:
        yield started


class ClosingEnvironment(Mapping[str, str]):
    """Variables that close the group which asks for them: another thread could do so at that moment."""

    def __init__(self) -> None:
        self.group: WorkerGroup | None = None

    def __getitem__(self, name: str) -> str:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        if self.group is not None:
            self.group.close()
        return iter(())

    def __len__(self) -> int:
        return 0


def workers_of(cluster: Cluster) -> set[int]:
    """Processes of actors of this package."""
    return {one.pid for one in descendants(os.getpid()) if "ray::Worker" in one.command_line()}


def test_a_group_that_is_closed_while_it_starts_leaves_no_worker(cluster: Cluster) -> None:
    environment = ClosingEnvironment()
    group = WorkerGroup(cluster, Recipe(), GroupOptions(workers=1, environment=environment))
    environment.group = group
    with pytest.raises(GroupStateError, match="it was closed while it was starting"):
        group.start()
    assert group.state == "closed"
    assert group._current is None
    assert workers_of(cluster) == set()


def test_closing_during_a_start_is_told_as_that(cluster: Cluster) -> None:
    recipe = Recipe(factory="worker_tasks:sleep_long")
    group = WorkerGroup(cluster, recipe, ALONE)

    def close_when_it_loads() -> None:
        while group._current is None or not group._current.processes:
            threading.Event().wait(0.01)
        group.close()

    closer = threading.Thread(target=close_when_it_loads)
    closer.start()
    with pytest.raises(GroupStateError, match="it was closed while it was starting"):
        group.start()
    closer.join()
    assert group.state == "closed"
    assert workers_of(cluster) == set()


def test_a_listener_may_close_the_group(cluster: Cluster) -> None:
    group = WorkerGroup(cluster, Recipe(), ALONE)

    def close(progress: Progress) -> None:
        group.close()

    with pytest.raises(GroupStateError, match="it was closed while a call was running"):
        group.call("worker_tasks:steps", {"count": 100, "seconds": 0.01}, on_step=close)
    assert group.state == "closed"


def test_a_cluster_of_somebody_else_stays_and_nothing_is_written_into_the_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    before = dict(os.environ)
    with pytest.raises(ClusterError, match="already connected"):
        start_cluster()
    assert dict(os.environ) == before
    import ray

    address = ray.get_runtime_context().gcs_address
    with pytest.raises(ClusterError, match="already connected"):
        connect_cluster(address)
    assert dict(os.environ) == before
    assert not cluster.is_closed


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
def test_after_the_cluster_nothing_starts_another_one(cluster: Cluster) -> None:
    """Ray starts a cluster by itself, open to the network, when it is asked for anything without one."""
    weights = SharedWeights.from_tensors({"a": torch.ones(4)}, room=cluster.room)
    group = WorkerGroup(cluster, Recipe(), ALONE)
    group.start()
    folder = cluster.folder
    cluster.close()
    assert folder is not None
    assert not Path(folder).exists()
    for use in (group.start, group.restart, lambda: group.call("worker_tasks:whoami"), group.sharing):
        with pytest.raises(
            (GroupStateError, WeightsError), match=r"on a cluster that is running|has no shared weights"
        ):
            use()
    with pytest.raises(WeightsError, match="have no cluster whose store holds them"):
        weights.open()
    with pytest.raises(WeightsError, match="have no cluster whose store holds them"):
        SharedWeights.from_tensors({"a": torch.ones(4)}, room=cluster.room)
    weights.close()
    group.close()
    import ray

    assert not ray.is_initialized()
    assert [one.command_line() for one in descendants(os.getpid()) if "ray" in one.command_line()] == []
