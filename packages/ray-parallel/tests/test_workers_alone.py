"""A worker without a cluster: every step of its life in this process, and what it answers when one goes wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_models import PLAN, Transformer, noise, weights
from runner_models import alone as model_alone
from shared_examples import write_file

from ray_parallel._in_worker import Built, build, sample
from ray_parallel._run import FLOW_EULER
from ray_parallel.sequence import PlanError, UnknownModelError
from ray_parallel.workers import InvalidRequestError, SharedWeights, WeightsError, WorkerContext
from ray_parallel.workers.cluster._cluster import _ray_environment
from ray_parallel.workers.group._versions import versions
from ray_parallel.workers.group._worker import Worker


def done(record: dict[str, Any]) -> Any:
    assert record["event"] == "done", record
    return record["value"]


def joined(rank: int = 0) -> Worker:
    """A worker that is alone in its group."""
    worker = Worker(rank, 1, 3)
    done(worker.do("join", "127.0.0.1", 0, False, 5.0, 5.0))
    return worker


def last(worker: Worker, function: str, **arguments: Any) -> dict[str, Any]:
    return list(worker.run(1, f"worker_tasks:{function}", arguments))[-1]


@pytest.fixture
def shared(tmp_path: Path) -> SharedWeights:
    return SharedWeights.from_file(
        write_file(tmp_path / "model.safetensors", {"a": torch.arange(6.0), "b": torch.ones(2)})
    )


def test_it_greets_with_what_the_driver_compares() -> None:
    with _ray_environment():  # it imports Ray, which listens to the network for the rest of this process otherwise
        greeting = done(Worker(0, 1, 1).do("hello"))
    assert (greeting["versions"], greeting["pid"]) == (versions(), os.getpid())
    assert socket.inet_aton(greeting["host"])


def test_it_opens_a_meeting_point_that_is_free() -> None:
    worker = Worker(0, 2, 1)
    port = done(worker.do("meet", "127.0.0.1", 0, 5.0))
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    assert done(Worker(0, 2, 1).do("meet", "127.0.0.1", port, 5.0)) is None


def test_an_address_that_is_not_its_own_is_told() -> None:
    failed = Worker(0, 2, 1).do("meet", "192.0.2.1", 0, 5.0)
    assert (failed["event"], failed["kind"], failed["refused"]) == ("failed", "builtins.OSError", False)
    assert "open_meeting" in failed["traceback"]


def test_it_looks_for_files(shared: SharedWeights) -> None:
    assert done(Worker(0, 1, 1).do("sees", shared)) is True
    Path(shared.files[0].path).write_bytes(b"another")
    assert done(Worker(0, 1, 1).do("sees", shared)) is False


def test_it_knows_its_place() -> None:
    worker = joined()
    done(worker.do("load", None, {}, None))
    found = last(worker, "whoami")["value"]
    assert {name: found[name] for name in ("rank", "size", "pid", "device", "built")} == {
        "rank": 0, "size": 1, "pid": os.getpid(), "device": "cpu", "built": None,
    }  # fmt: skip


def test_weights_are_opened_before_the_factory_runs_and_measured(shared: SharedWeights) -> None:
    worker = joined()
    done(worker.do("load", "worker_tasks:build", {"factor": 2.0}, shared))
    seen = last(worker, "weights_seen")["value"]
    assert (seen["mode"], seen["sums"]) == ("file", {"a": 15.0, "b": 2.0})
    assert last(worker, "whoami")["value"]["built"] == {"factor": 2.0, "generation": 3, "calls": 0}
    share = done(worker.do("share"))
    assert share is None or share["resident_bytes"] >= shared.size_bytes


def test_without_weights_there_is_nothing_to_measure() -> None:
    assert done(joined().do("share")) is None
    assert done(Worker(0, 1, 1).do("share")) is None


def test_a_factory_that_fails_is_told_with_its_place() -> None:
    failed = joined().do("load", "worker_tasks:build_not", {}, None)
    assert (failed["kind"], failed["reason"], failed["refused"]) == (
        "builtins.FileNotFoundError",
        "no model here",
        False,
    )
    assert "in build_not" in failed["traceback"]


@pytest.mark.parametrize(("factory", "reason"), [("nowhere:build", "finds no module"), ("json:nothing", "no function")])
def test_a_factory_that_is_not_there_is_refused(factory: str, reason: str) -> None:
    failed = joined().do("load", factory, {}, None)
    assert failed["refused"]
    assert reason in failed["reason"]


def test_weights_that_were_closed_are_refused(shared: SharedWeights) -> None:
    shared.close()
    failed = joined().do("load", None, {}, shared)
    assert failed["refused"]
    assert "were closed" in failed["reason"]


def test_a_step_that_is_none_is_told() -> None:
    assert Worker(0, 1, 1).do("dance")["kind"] == "builtins.KeyError"


@pytest.mark.parametrize(
    ("how", "kind", "refused"),
    [("raise", "builtins.ZeroDivisionError", False), ("refuse", "ray_parallel.sequence.plan._errors.PlanError", True)],
)
def test_what_a_function_raises_is_told(how: str, kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)  # there is nobody to talk to
    worker = joined(rank=0)
    done(worker.do("load", None, {}, None))
    failed = last(worker, "misbehave", how=how, rank=0)
    assert (failed["kind"], failed["refused"]) == (kind, refused)


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    opened = SharedWeights.from_file(write_file(tmp_path / "model.safetensors", weights())).open()
    return WorkerContext(rank=0, size=1, device=torch.device("cpu"), weights=opened, generation=1)


def recipe(**changes: Any) -> dict[str, Any]:
    usual = {"model": "runner_models:Transformer", "arguments": {}, "plan": PLAN.to_json(), "kind": "ulysses"}
    return {**usual, "ulysses": None, "canary": False, **changes}


def test_a_model_alone_needs_no_plan_and_samples_as_it_does_here(context: WorkerContext) -> None:
    built = build(context, **recipe(plan=None))
    assert built.parallel is None
    assert context.weights is not None
    assert all(value.data_ptr() == context.weights[name].data_ptr() for name, value in built.model.state_dict().items())
    loop = {"latents": noise(), "sigmas": [1.0, 0.5, 0.0], "inputs": {}}
    answer = sample(context, built, loop=FLOW_EULER, arguments=loop)
    again = sample(context, Built(model=model_alone(), parallel=None), loop=FLOW_EULER, arguments=loop)
    assert torch.equal(answer["latents"], again["latents"])
    assert (answer["sent_bytes"], answer["digest"]) == (0, again["digest"])


@pytest.mark.parametrize("arguments", [{"width": 48}, {"heads": 3, "width": 12}])
def test_weights_of_another_size_are_refused(context: WorkerContext, arguments: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="has shapes that differ for"):
        build(context, **recipe(arguments=arguments))


def test_a_model_needs_weights(context: WorkerContext) -> None:
    context.weights = None
    with pytest.raises(InvalidRequestError, match="the group has no shared weights"):
        build(context, **recipe())


@pytest.mark.parametrize(
    ("plan", "kind", "reason"),
    [
        (None, UnknownModelError, "no plan is known for runner_models.Transformer"),
        ("no plan", PlanError, "this is not a plan in JSON"),
    ],
)
def test_a_plan_is_found_or_read_before_the_ranks_talk(
    context: WorkerContext, plan: str | None, kind: type[PlanError], reason: str
) -> None:
    context.size = 2
    with pytest.raises(kind, match=reason):
        build(context, **recipe(plan=plan))


def test_inputs_go_to_the_device_wherever_they_are_kept(context: WorkerContext) -> None:
    """The loop gets what it was given: mappings, lists and tuples of tensors, and text as it is."""
    given: dict[str, Any] = {"latents": noise(), "kept": [(noise(), "text"), {"name": b"bytes"}, 3]}
    answer = sample(
        context, Built(model=Transformer(), parallel=None), loop="test_workers_alone:returned", arguments=given
    )
    assert torch.equal(answer["latents"], noise() * 2)


def returned(model: torch.nn.Module, step: Any, *, latents: torch.Tensor, kept: Any) -> torch.Tensor:
    (first, text), mapping, number = kept
    assert (type(kept), type(kept[0]), text, mapping, number) == (list, tuple, "text", {"name": b"bytes"}, 3)
    assert not torch.is_grad_enabled()
    step(1, 1)
    return torch.add(latents, first)
