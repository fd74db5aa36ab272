"""A group of real workers: what they are told, what they answer, how they stop together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_fixtures import cluster
from shared_examples import every_type, same_bits, write_file

from ray_parallel.workers import (
    CancelledError,
    Cluster,
    GroupOptions,
    GroupStateError,
    InvalidRequestError,
    Progress,
    Recipe,
    RunRefusedError,
    SharedWeights,
    TensorSlot,
    WorkerGroup,
)

__all__ = ["cluster"]

pytestmark = pytest.mark.slow

QUICK = GroupOptions(step_seconds=60, call_seconds=120, cancel_seconds=30)
ALONE = replace(QUICK, workers=1)


@pytest.fixture(scope="module")
def group(cluster: Cluster) -> Iterator[WorkerGroup]:
    recipe = Recipe(factory="worker_tasks:build", arguments={"factor": 2.0})
    with WorkerGroup(cluster, recipe, QUICK) as ready:
        yield ready


def test_each_worker_knows_its_place(group: WorkerGroup) -> None:
    answers = group.call("worker_tasks:whoami")
    assert [(answer["rank"], answer["size"]) for answer in answers] == [(0, 2), (1, 2)]
    assert len({answer["pid"] for answer in answers}) == 2
    assert group.state == "ready"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the workers take the GPUs that are here")
def test_without_a_gpu_they_compute_on_the_cpu(group: WorkerGroup) -> None:
    for answer in group.call("worker_tasks:whoami"):
        assert (answer["device"], answer["visible"], answer["threads"]) == ("cpu", "", 1)


def test_what_the_factory_built_stays(group: WorkerGroup) -> None:
    before = group.call("worker_tasks:whoami")[0]["built"]["calls"]
    totals = group.call("worker_tasks:total", {"value": torch.tensor([1.0, 2.0])})
    assert all(torch.equal(total, torch.tensor([6.0, 12.0])) for total in totals)
    assert group.call("worker_tasks:whoami")[1]["built"] == {"factor": 2.0, "generation": 1, "calls": before + 1}


def test_progress_arrives_in_order_with_previews(group: WorkerGroup) -> None:
    seen: list[Progress] = []
    results = group.call("worker_tasks:steps", {"count": 5, "preview": True}, on_step=seen.append)
    assert [(progress.done, progress.of) for progress in seen] == [(done, 5) for done in range(1, 6)]
    assert all(torch.equal(progress.preview["latent"], torch.full((2,), float(progress.done))) for progress in seen)
    assert results == [{"done": 5}, {"done": 5}]


def test_progress_arrives_while_the_call_runs(group: WorkerGroup) -> None:
    moments: list[float] = []
    group.call("worker_tasks:steps", {"count": 4, "seconds": 0.2}, on_step=lambda _: moments.append(time.monotonic()))
    assert moments[-1] - moments[0] > 0.4


def test_cancelling_stops_all_at_one_step_and_keeps_them(group: WorkerGroup) -> None:
    generation = group.generation
    started = threading.Event()

    def cancel() -> None:
        assert started.wait(60)
        assert group.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(CancelledError) as cancelled:
        group.call("worker_tasks:steps", {"count": 2000, "seconds": 0.01}, on_step=lambda _: started.set())
    canceller.join()
    assert 1 <= cancelled.value.step < 2000
    # Ranks that had stopped at different steps would now be out of step in this exchange.
    assert torch.equal(group.call("worker_tasks:total", {"value": torch.ones(1)})[0], torch.tensor([6.0]))
    assert group.generation == generation


def test_a_cancellation_does_not_reach_the_next_call(group: WorkerGroup) -> None:
    assert not group.cancel()
    assert group.call("worker_tasks:steps", {"count": 3}) == [{"done": 3}, {"done": 3}]


def test_an_error_of_the_listener_stops_the_workers_and_goes_on(group: WorkerGroup) -> None:
    generation = group.generation

    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise LookupError("the user pressed stop")

    with pytest.raises(LookupError, match="the user pressed stop"):
        group.call("worker_tasks:steps", {"count": 2000, "seconds": 0.01}, on_step=interrupt)
    assert group.state == "ready"
    assert group.call("worker_tasks:steps", {"count": 1}) == [{"done": 1}, {"done": 1}]
    assert group.generation == generation


def test_one_call_at_a_time(group: WorkerGroup) -> None:
    refused: list[GroupStateError] = []

    def meanwhile(progress: Progress) -> None:
        def call() -> None:
            try:
                group.call("worker_tasks:whoami")
            except GroupStateError as error:
                refused.append(error)

        other = threading.Thread(target=call)
        other.start()
        other.join()

    group.call("worker_tasks:steps", {"count": 1}, on_step=meanwhile)
    assert refused[0].state == "busy"


@pytest.mark.parametrize("arguments", [{"value": print}, {"value": {1: 2}}])
def test_what_is_not_plain_does_not_travel(group: WorkerGroup, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="only plain data and tensors travel"):
        group.call("worker_tasks:total", arguments)
    assert group.state == "ready"


def test_two_groups_work_at_once_on_one_cluster(cluster: Cluster, group: WorkerGroup) -> None:
    with WorkerGroup(cluster, Recipe(factory="worker_tasks:build"), QUICK) as other:
        other.start()
        totals: dict[str, float] = {}

        def work(name: str, which: WorkerGroup) -> None:
            for _ in range(5):
                totals[name] = which.call("worker_tasks:total", {"value": torch.ones(1)})[0].item()

        threads = [threading.Thread(target=work, args=pair) for pair in (("first", group), ("second", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert totals == {"first": 6.0, "second": 3.0}
        pids = {answer["pid"] for which in (group, other) for answer in which.call("worker_tasks:whoami")}
        assert len(pids) == 4


def test_weights_without_a_file_go_through_the_store(cluster: Cluster) -> None:
    tensors = every_type()
    tensors |= {"tied": tensors["layer.bfloat16"], "large": torch.randn(1 << 18)}
    with SharedWeights.from_tensors(
        tensors, room=cluster.room, notes={"scalar": {"quantised": "not"}}, metadata={"model": "tiny"}
    ) as weights:
        assert cluster.room.taken_bytes == weights.size_bytes
        with WorkerGroup(cluster, Recipe(weights=weights), QUICK) as workers:
            for copied in workers.call("worker_tasks:weights_copied"):
                assert set(copied) == set(tensors)
                assert all(same_bits(copied[name], tensors[name]) for name in tensors)
            seen = workers.call("worker_tasks:weights_seen")[1]
            assert seen["mode"] == "store"
            assert seen["notes"]["scalar"] == {"quantised": "not"}
            assert seen["protected_bytes"] >= weights.size_bytes
    assert cluster.room.taken_bytes == 0


def test_workers_hold_one_copy_of_a_file(cluster: Cluster, tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", {"a": torch.ones(4 << 20)})
    weights = SharedWeights.from_file(path)
    with WorkerGroup(cluster, Recipe(weights=weights), QUICK) as workers:
        report = workers.sharing()
        assert report.mode == "file"
        assert len(report.shares) == 2
        assert report.copies == pytest.approx(1.0, abs=0.02)
        # In a file's mapping a write is a worker's own affair: nobody else sees it, and it is counted.
        assert workers.call("worker_tasks:write_in_place", {"name": "a", "quietly": False}) == [0, 1]
        sums = [seen["sums"]["a"] for seen in workers.call("worker_tasks:weights_seen")]
        assert sums == [float(4 << 20), 0.0]
        own = [share.own_bytes for share in workers.sharing().shares]
        assert own[0] == 0
        assert own[1] >= 16 << 20


def test_workers_hold_one_copy_of_the_store(cluster: Cluster) -> None:
    with (
        SharedWeights.from_tensors({"a": torch.ones(4 << 20)}, room=cluster.room) as weights,
        WorkerGroup(cluster, Recipe(weights=weights), QUICK) as workers,
    ):
        report = workers.sharing()
        assert report.mode == "store"
        # The store's own server holds the pages too, so the workers' part of one copy is less than all of it.
        assert 0.3 < report.copies < 1.02
        assert sum(share.own_bytes for share in report.shares) == 0


def test_a_file_that_a_worker_does_not_see_is_shipped(cluster: Cluster, tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", {"a": torch.full((1000,), 3.0)})
    weights = SharedWeights.from_file(path)
    with WorkerGroup(cluster, Recipe(weights=weights), ALONE) as workers, weights:
        # What a machine without the file sees: another length under that name.
        weights.ship(cluster.room)
        path.write_bytes(b"another file")
        (seen,) = workers.call("worker_tasks:weights_seen")
    assert seen["mode"] == "store"
    assert seen["sums"] == {"a": 3000.0}


def test_bytes_of_any_format_reach_the_workers_with_their_notes(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(range(64)))
    note = {"ggml_type": "Q4_0", "shape": [1, 32]}
    slot = TensorSlot(name="packed", dtype="uint8", shape=(18,), size_bytes=18, offset_bytes=7, note=note)
    weights = SharedWeights.from_file(path, slots=[slot])
    with WorkerGroup(cluster, Recipe(weights=weights), ALONE) as workers:
        assert workers.call("worker_tasks:weights_copied")[0]["packed"].tolist() == [*range(7, 25)]
        assert workers.call("worker_tasks:weights_seen")[0]["notes"] == {"packed": note}


def test_a_request_is_refused_by_name(cluster: Cluster) -> None:
    with WorkerGroup(cluster, Recipe(), ALONE) as workers:
        with pytest.raises(RunRefusedError, match="the module has no function 'nothing'") as refused:
            workers.call("worker_tasks:nothing")
        assert refused.value.kind == "ray_parallel.workers._errors.InvalidRequestError"
        assert workers.state == "broken"


def test_a_closed_group_stays_closed(cluster: Cluster) -> None:
    workers = WorkerGroup(cluster, Recipe(), QUICK)
    assert workers.state == "new"
    workers.close()
    workers.close()
    with pytest.raises(GroupStateError, match="closed; make a new one"):
        workers.call("worker_tasks:whoami")
