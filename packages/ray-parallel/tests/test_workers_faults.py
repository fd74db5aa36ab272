"""What goes wrong with real processes: a typed error in bounded time, no orphan, and the next call works."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_fixtures import cluster

from ray_parallel.workers import (
    Cluster,
    DeadlineExceededError,
    GpuIndexError,
    GroupOptions,
    GroupStateError,
    InvalidRequestError,
    PortTakenError,
    Progress,
    Recipe,
    RunRefusedError,
    SharedWeights,
    SharedWriteError,
    VersionMismatchError,
    WorkerDiedError,
    WorkerFailure,
    WorkerGroup,
    WorkerRaisedError,
)
from ray_parallel.workers.cluster._processes import Process

__all__ = ["cluster"]

pytestmark = pytest.mark.slow

OPTIONS = GroupOptions(step_seconds=60, call_seconds=120, start_seconds=120)
ALONE = replace(OPTIONS, workers=1)
BOUND_SECONDS = 15.0
"""How long a fault may take to be reported beyond its deadline, on a busy machine."""


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[SharedWeights]:
    with SharedWeights.from_tensors({"a": torch.ones(1 << 18), "b": torch.ones(8)}, room=cluster.room) as weights:
        yield weights


@pytest.fixture(scope="module")
def group(cluster: Cluster, shared: SharedWeights) -> Iterator[WorkerGroup]:
    recipe = Recipe(factory="worker_tasks:build", weights=shared)
    with WorkerGroup(cluster, recipe, OPTIONS) as ready:
        yield ready


def processes(group: WorkerGroup) -> tuple[Process, ...]:
    group.start()
    assert group._current is not None
    return group._current.processes


def require_recovered(group: WorkerGroup, before: tuple[Process, ...], generation: int) -> None:
    """The processes of the failed generation are gone, and the next call finds new ones with the same weights."""
    assert group.state == "broken"
    if sys.platform == "linux":
        assert len(before) == 2
        assert [one for one in before if one.is_alive()] == []
    assert group.call("worker_tasks:total", {"value": torch.ones(1)})[0].item() == 3.0
    assert group.generation == generation + 1
    assert group.call("worker_tasks:weights_seen")[1]["sums"] == {"a": float(1 << 18), "b": 8.0}


@pytest.mark.parametrize(
    ("how", "rank", "error", "message"),
    [
        ("kill", 0, WorkerDiedError, "died: it was killed, ran out of memory or crashed"),
        ("kill", 1, WorkerDiedError, "died: it was killed, ran out of memory or crashed"),
        ("raise", 0, WorkerRaisedError, "raised builtins.ZeroDivisionError: the worker divided by nothing"),
        ("refuse", 1, RunRefusedError, "raised ray_parallel.sequence.plan._errors.PlanError: the plan does not fit"),
    ],
)
def test_one_worker_fails_in_the_middle_of_a_step(
    group: WorkerGroup, how: str, rank: int, error: type[WorkerFailure], message: str
) -> None:
    before, generation = processes(group), group.generation
    began = time.monotonic()
    with pytest.raises(error, match=f"worker {rank} {message}") as failed:
        group.call("worker_tasks:misbehave", {"how": how, "rank": rank})
    assert time.monotonic() - began < BOUND_SECONDS
    assert (type(failed.value), failed.value.rank, failed.value.generation) == (error, rank, generation)
    if isinstance(failed.value, WorkerRaisedError):
        assert f"raised {failed.value.kind}: {failed.value.reason}" in str(failed.value)
        assert "in _misbehave" in failed.value.worker_traceback
    require_recovered(group, before, generation)


@pytest.mark.parametrize("how", ["stall", "stop"])
def test_a_worker_that_stalls_is_ended_at_the_deadline(group: WorkerGroup, how: str) -> None:
    before, generation = processes(group), group.generation
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="did not finish a step within 3 s"):
        group.call("worker_tasks:misbehave", {"how": how}, step_seconds=3)
    assert 3 <= time.monotonic() - began < 3 + BOUND_SECONDS
    require_recovered(group, before, generation)


def test_a_call_that_takes_too_long_is_ended_however_much_it_tells(group: WorkerGroup) -> None:
    before, generation = processes(group), group.generation
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="did not finish the call within 1 s") as late:
        group.call("worker_tasks:chatter", {"seconds": 60.0}, call_seconds=1)
    assert time.monotonic() - began < 1 + BOUND_SECONDS
    assert late.value.seconds == 1
    require_recovered(group, before, generation)


def test_the_time_of_the_listener_is_not_that_of_a_step(group: WorkerGroup) -> None:
    seen: list[int] = []

    def slowly(progress: Progress) -> None:
        seen.append(progress.done)
        time.sleep(1.5 if progress.done == 1 else 0)

    assert group.call("worker_tasks:steps", {"count": 3, "seconds": 0.01}, on_step=slowly, step_seconds=1)[0] == {
        "done": 3
    }
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("deadline", ["call_seconds", "step_seconds"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf")])
def test_a_deadline_that_cannot_be_is_refused(group: WorkerGroup, deadline: str, seconds: float) -> None:
    before, generation = processes(group), group.generation
    limits: dict[str, Any] = {deadline: seconds}
    with pytest.raises(
        InvalidRequestError, match=f"{deadline} is {seconds}; every deadline is a number of seconds above 0"
    ):
        group.call("worker_tasks:whoami", **limits)
    assert (group.state, group.generation, processes(group)) == ("ready", generation, before)


def test_cancelling_a_worker_that_does_not_listen_is_bounded_too(cluster: Cluster) -> None:
    options = GroupOptions(step_seconds=60, cancel_seconds=2)
    with WorkerGroup(cluster, Recipe(), options) as group:

        def interrupt(progress: Progress) -> None:
            raise KeyError("stop")

        began = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="did not finish stopping within 2 s"):
            group.call("worker_tasks:misbehave", {"how": "stall", "at": 2}, on_step=interrupt)
        assert time.monotonic() - began < 60


def test_killed_from_outside_between_two_calls(group: WorkerGroup) -> None:
    before, generation = processes(group), group.generation
    os.kill(before[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="worker 0 died"):
        group.call("worker_tasks:total", {"value": torch.ones(1)})
    require_recovered(group, before, generation)


def test_the_driver_is_interrupted(group: WorkerGroup) -> None:
    before, generation = processes(group), group.generation
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        group.call("worker_tasks:steps", {"count": 10000, "seconds": 0.05})
    require_recovered(group, before, generation)


def require_closed(group: WorkerGroup) -> None:
    assert group.state == "closed"
    assert group._current is None


def test_closing_ends_a_running_call(cluster: Cluster) -> None:
    group = WorkerGroup(cluster, Recipe(), ALONE)
    before = processes(group)
    threading.Timer(0.3, group.close).start()
    with pytest.raises(GroupStateError, match="closed while a call was running"):
        group.call("worker_tasks:steps", {"count": 10000, "seconds": 0.05})
    require_closed(group)
    give_up = time.monotonic() + BOUND_SECONDS
    while any(one.is_alive() for one in before) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert [one for one in before if one.is_alive()] == []


def test_closing_ends_a_start(cluster: Cluster) -> None:
    group = WorkerGroup(cluster, Recipe(factory="worker_tasks:build_slowly", arguments={"seconds": 600.0}), ALONE)
    seen: list[Process] = []

    def close_when_it_loads() -> None:
        while group._current is None or not group._current.processes:
            time.sleep(0.01)
        seen.extend(group._current.processes)
        group.close()

    closer = threading.Thread(target=close_when_it_loads)
    closer.start()
    with pytest.raises(GroupStateError, match="it was closed while it was starting"):
        group.start()
    closer.join()
    require_closed(group)
    assert [one for one in seen if one.is_alive()] == []


class ClosingEnvironment(Mapping[str, str]):
    """Variables that close the group which asks for them, as another thread could do at that moment."""

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


def test_a_group_that_is_closed_before_its_workers_are_there_leaves_none(cluster: Cluster) -> None:
    environment = ClosingEnvironment()
    group = WorkerGroup(cluster, Recipe(), replace(ALONE, environment=environment))
    environment.group = group
    with pytest.raises(GroupStateError, match="it was closed while it was starting"):
        group.start()
    require_closed(group)


def test_a_process_with_more_to_lose_finds_out_about_writes(cluster: Cluster) -> None:
    with SharedWeights.from_tensors({"a": torch.ones(1 << 18), "b": torch.ones(8)}, room=cluster.room) as weights:
        opened, other = weights.open(), weights.open()
        opened.require_unwritten()
        with torch.inference_mode():
            opened["a"][3:5].mul_(2)
        assert other["a"].sum().item() == (1 << 18) + 2
        with pytest.raises(SharedWriteError, match=r"'a': written in place.*never in place") as refused:
            opened.require_unwritten()
        assert refused.value.names == ("a",)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected on Linux")
def test_no_write_reaches_the_weights_of_another_worker(group: WorkerGroup) -> None:
    before, generation = processes(group), group.generation
    with pytest.raises(WorkerDiedError, match=r"worker 1 died: .*; a write in place to weights of the object store"):
        group.call("worker_tasks:write_in_place", {"name": "a", "quietly": True})
    require_recovered(group, before, generation)


def test_building_fails(cluster: Cluster) -> None:
    with WorkerGroup(cluster, Recipe(factory="worker_tasks:build_not"), ALONE) as group:
        with pytest.raises(WorkerRaisedError, match="FileNotFoundError: no model here"):
            group.start()
        assert group.state == "broken"


def test_building_takes_too_long(cluster: Cluster) -> None:
    recipe = Recipe(factory="worker_tasks:build_slowly", arguments={"seconds": 600.0})
    with WorkerGroup(cluster, recipe, replace(ALONE, start_seconds=20)) as group:
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="worker 0 did not finish load within 20 s"):
            group.start()
        assert time.monotonic() - began < 20 + BOUND_SECONDS
        assert group.state == "broken"


def test_the_port_is_taken(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = replace(ALONE, torch_dist_address=f"127.0.0.1:{port}")
        group = WorkerGroup(cluster, Recipe(factory="worker_tasks:build"), options)
        with pytest.raises(PortTakenError, match=f"cannot meet at 127.0.0.1:{port}.*or port 0") as refused:
            group.start()
        assert refused.value.address == f"127.0.0.1:{port}"
        assert group.state == "broken"
    # The same group, once the port is free.
    with group:
        assert group.call("worker_tasks:steps", {"count": 1}) == [{"done": 1}]


def test_a_worker_of_another_version(cluster: Cluster, tmp_path: Path) -> None:
    metadata = tmp_path / "ray_parallel-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: ray-parallel\nVersion: 9.9.9\n")
    paths = os.pathsep.join([str(tmp_path), *(str(Path(path).absolute()) for path in sys.path if Path(path).is_dir())])
    options = replace(ALONE, environment={"PYTHONPATH": paths})
    with WorkerGroup(cluster, Recipe(), options) as group:
        with pytest.raises(VersionMismatchError, match=r"worker 0 runs other versions .*install the same") as refused:
            group.start()
        assert refused.value.differences["ray-parallel"][1] == "9.9.9"
        assert group.state == "broken"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_there_is_no_such_gpu(cluster: Cluster) -> None:
    group = WorkerGroup(cluster, Recipe(), GroupOptions(gpu_indices="0,1"))
    with group, pytest.raises(GpuIndexError, match="there is no GPU 0; this process sees none"):
        group.start()
    with pytest.raises(InvalidRequestError, match="2 workers need 2 GPUs and this process sees 0"):
        WorkerGroup(cluster, Recipe(), GroupOptions(device="cuda")).start()
