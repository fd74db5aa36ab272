"""An interrupt is no `Exception`: wherever it comes, the plan ends with the call, and later attention is not caught."""

from __future__ import annotations

import itertools
from contextlib import nullcontext, suppress
from typing import Any, get_args

import pytest
import torch
from seq_core_models import DIM, VIDEO, Video, filled, random, video_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from ray_parallel.sequence import CommError, Kind, Mesh, PlanError, ThreadComm, parallelize, run_threads

INPUTS = video_inputs(tokens=5)
KINDS: tuple[Kind, ...] = get_args(Kind)


class HostInterrupt(BaseException):
    """Like the host's InterruptProcessingException."""


class RaisesAt(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, without types
    """Raise at one operation; counts those before it."""

    def __init__(self, place: int, error: type[BaseException]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.error, self.count = place, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.count == self.place:
            raise self.error
        self.count += 1
        return func(*args, **(kwargs or {}))


def modes() -> list[Any]:
    stack: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return stack


def was_interrupted(kind: Kind, calls: bool, place: int, error: type[BaseException]) -> bool:
    """Run a forward on two ranks with an interrupt in the second one, if that does so many operations."""
    seen: list[bool] = []

    def rank(comm: ThreadComm) -> None:
        model = filled(Video(depth=1))
        want, before = model(**INPUTS), model.forward
        mesh = Mesh.of(comm, kind, comm.size if kind == "usp" else None)
        with torch.no_grad(), parallelize(model, VIDEO, mesh, only_in_calls=calls) as handle:
            try:
                with RaisesAt(place, error) if comm.rank else nullcontext():
                    (handle.call if calls else model)(**INPUTS)
                ended = False
            except (CommError, error):
                ended = True
            assert modes() == []
            assert handle._forward is None
            assert not handle._calling
            if calls:
                assert torch.allclose(model(**INPUTS), want, atol=1e-5)
        assert model.forward == before
        assert torch.allclose(model(**INPUTS), want, atol=1e-5)
        if comm.rank:
            seen.append(ended)
            if ended:
                raise error  # what a rank does that is interrupted, so that the other one is woken

    with suppress(error):
        run_threads(2, rank, timeout_s=20)
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_operation_leaves_nothing_in_the_thread(kind: Kind, calls: bool, stride: int) -> None:
    places = itertools.count(KINDS.index(kind), stride)
    errors = itertools.cycle((KeyboardInterrupt, HostInterrupt))
    ended = itertools.takewhile(lambda pair: was_interrupted(kind, calls, *pair), zip(places, errors, strict=False))
    assert sum(1 for _ in ended) > 80 // stride


def test_after_an_interrupt_the_same_handle_runs_on() -> None:
    def rank(comm: ThreadComm) -> Any:
        model = filled(Video())
        want = model(**INPUTS)
        with torch.no_grad(), parallelize(model, VIDEO, comm, only_in_calls=True) as handle:
            for place in (3, 30):
                with pytest.raises(HostInterrupt), RaisesAt(place, HostInterrupt):
                    handle.call(**INPUTS)
            return (handle.call(**INPUTS) - want).abs().max().item()

    assert max(run_threads(2, rank, timeout_s=20)) < 1e-5


def test_a_plan_for_calls_alone_lets_every_other_call_pass() -> None:
    def rank(comm: ThreadComm) -> tuple[bool, int, int]:
        model = filled(Video())
        want = model(**INPUTS)
        with torch.no_grad(), parallelize(model, VIDEO, comm, only_in_calls=True) as handle:
            same = torch.allclose(model(**INPUTS), want, atol=1e-5)
            silent = handle.mesh.sent_bytes
            handle.call(**INPUTS)
            return same, silent, handle.mesh.sent_bytes

    for same, silent, sent in run_threads(2, rank, timeout_s=20):
        assert same
        assert silent == 0 < sent


def test_a_call_within_a_call_and_one_after_the_end_are_refused() -> None:
    def rank(comm: ThreadComm) -> None:
        model = filled(Video())
        with torch.no_grad(), parallelize(model, VIDEO, comm) as handle:
            hook = model.register_forward_pre_hook(lambda *_: handle.call(**INPUTS))
            with pytest.raises(PlanError, match="is running already"):
                handle.call(**INPUTS)
            hook.remove()
            handle.call(**INPUTS)
        with pytest.raises(PlanError, match="was removed"):
            handle.call(**INPUTS)

    run_threads(1, rank)


def test_a_forward_that_was_replaced_before_is_put_back_and_one_that_wraps_ours_passes() -> None:
    model = filled(Video())
    original = model.forward
    x = random(1, 5, DIM)
    before = lambda *args, **kwargs: original(*args, **kwargs) + 1  # noqa: E731
    model.__dict__["forward"] = before

    def rank(comm: ThreadComm) -> None:
        with parallelize(model, VIDEO, comm):
            assert model.forward is not before
        assert model.forward is before
        handle = parallelize(model, VIDEO, comm)
        ours = model.forward
        model.__dict__["forward"] = outer = lambda *args, **kwargs: ours(*args, **kwargs) * 2
        handle.remove()
        assert model.forward is outer
        assert torch.allclose(model(**{**INPUTS, "x": x}), (original(**{**INPUTS, "x": x}) + 1) * 2, atol=1e-5)

    run_threads(1, rank)
