"""What several owners have of one model: a process that was forked, and another model with the same parameters."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import pytest
import torch
from placement_models import Machine, Stack, accelerator, emulated, example_input, plan_for, same_device, stack

from device_placement import HandleStateError, place

torch.set_num_threads(1)  # a forked process has no threads of OpenMP, whatever the parent did with them
X = example_input()
FORKED = 5.0


def in_a_fork(action: Callable[[], object]) -> int:
    """Exit code of a forked process: 0 if the action returned True, 3 if not, 4 for an error of ours, 9 if it hung."""
    child = os.fork()
    if not child:
        code = 5
        try:
            code = 0 if action() is True else 3
        except HandleStateError:
            code = 4
        finally:
            os._exit(code)
    deadline = time.monotonic() + FORKED
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 9


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("make", [same_device, emulated, lambda: emulated(2)])
@pytest.mark.parametrize("passes", [0, 1])
def test_a_forked_process_computes_the_same_and_so_does_the_parent(make: Callable[[], Machine], passes: int) -> None:
    machine, model = make(), stack(4)
    expected = model(X)
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        for _ in range(passes):
            machine.run(model, X)

        def run() -> bool:
            right = torch.equal(machine.run(model, X), expected)
            handle.refresh()
            return right and torch.equal(machine.run(model, X), expected)

        assert in_a_fork(run) == 0
        assert torch.equal(machine.run(model, X), expected)


def test_a_fork_inside_a_forward_is_an_error_there() -> None:
    machine, model = emulated(), stack(4)
    expected = model(X)
    codes: list[int] = []
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        hook = model.blocks[1].up.register_forward_hook(  # type: ignore[union-attr]
            lambda *_: codes.append(in_a_fork(lambda: model(X))) if not codes else None
        )
        assert torch.equal(machine.run(model, X), expected)
        hook.remove()
    assert codes == [4]


def test_a_device_refuses_a_forked_process(sim: object, request: pytest.FixtureRequest) -> None:
    machine, model = accelerator(request.getfixturevalue("sim")), stack(2)
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        assert in_a_fork(handle.refresh) == 4


def sharing(first: Stack, second: Stack, name: str) -> None:
    path, _, key = name.rpartition(".")
    setattr(second.get_submodule(path), key, getattr(first.get_submodule(path), key))


@pytest.mark.parametrize("name", ["blocks.1.up.weight", "head.weight"])
@pytest.mark.parametrize("make", [same_device, emulated])
def test_a_model_that_shares_a_parameter_with_a_placed_one_is_refused(make: Callable[[], Machine], name: str) -> None:
    machine, first, second = make(), stack(3), stack(3, seed=1)
    sharing(first, second, name)
    expected = first(X), second(X)
    handle = place(first, plan_for(first, machine), backend=machine.make_backend())
    with pytest.raises(HandleStateError, match=r"'[\w.]+' of the model belong to another model that is placed"):
        place(second, plan_for(second, machine), backend=machine.make_backend())
    assert torch.equal(machine.run(first, X), expected[0]) and torch.equal(second(X), expected[1])
    handle.remove()
    with place(second, plan_for(second, machine), backend=machine.make_backend()):
        assert torch.equal(machine.run(second, X), expected[1])
    assert torch.equal(first(X), expected[0])


def test_what_replaced_a_tensor_belongs_to_the_placement_too() -> None:
    machine, first, second = emulated(), stack(2), stack(2, seed=1)
    with place(first, plan_for(first, machine), backend=machine.make_backend()):
        owner = first.get_submodule("blocks.0.up")
        owner.weight = torch.nn.Parameter(owner.weight.detach() * 2)  # type: ignore[operator]
        machine.run(first, X)
        sharing(first, second, "blocks.0.up.weight")
        with pytest.raises(HandleStateError, match="another model that is placed"):
            place(second, plan_for(second, machine), backend=machine.make_backend())


def test_a_placed_model_that_is_gone_claims_nothing() -> None:
    machine, first, second = emulated(), stack(2), stack(2, seed=1)
    sharing(first, second, "blocks.0.up.weight")
    place(first, plan_for(first, machine), backend=machine.make_backend())
    del first
    gc.collect()
    with place(second, plan_for(second, machine), backend=machine.make_backend()):
        machine.run(second, X)


def test_models_of_one_storage_are_placed_side_by_side() -> None:
    machine, first, second = emulated(), stack(2), stack(2, seed=1)
    both = torch.cat([parameter.detach().flatten() for model in (first, second) for parameter in model.parameters()])
    offset = 0
    for model in (first, second):
        for parameter in model.parameters():
            parameter.data = both[offset : offset + parameter.numel()].view(parameter.shape)
            offset += parameter.numel()
    expected = first(X), second(X)
    with (
        place(first, plan_for(first, machine), backend=machine.make_backend()),
        place(second, plan_for(second, machine), backend=machine.make_backend()),
    ):
        assert torch.equal(machine.run(first, X), expected[0])
        assert torch.equal(machine.run(second, X), expected[1])
