"""Several threads run one placed model: they take turns, and each gets its own right result."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from placement_models import MACHINES, Machine, machine_named, plan_for, stack
from torch import Tensor

from device_placement import place


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_two_threads_get_their_own_results(machine: Machine, slots: int) -> None:
    model = stack()
    inputs = [torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    expected = [model(x) for x in inputs]
    with place(model, plan_for(model, machine, slots=slots), backend=machine.make_backend()) as handle:
        barrier = threading.Barrier(4)

        def work(index: int) -> list[Tensor]:
            barrier.wait()
            return [machine.run(model, inputs[index]) for _ in range(5)]

        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(work, range(4)))
        assert handle.stats().calls == 4 * 5 * 5
        for wanted, got in zip(expected, results, strict=True):
            assert all(torch.equal(result, wanted) for result in got)
        state = stack().state_dict()
        assert all(torch.equal(value.cpu(), state[name]) for name, value in model.state_dict().items())


def test_threads_on_streams_of_their_own_do_not_overwrite_each_other(request: pytest.FixtureRequest) -> None:
    machine = machine_named("accelerator", request)
    model = stack()
    x = torch.randn(2, 32)
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):

        def work(index: int) -> list[Tensor]:
            stream = torch.Stream(device=machine.device)
            torch.accelerator.set_stream(stream)
            return [machine.run(model, x) for _ in range(4)]

        with ThreadPoolExecutor(3) as threads:
            for got in threads.map(work, range(3)):
                assert all(torch.equal(result, expected) for result in got)


def test_an_exception_in_one_thread_does_not_stop_the_other(machine: Machine) -> None:
    model = stack()
    x = torch.randn(2, 32)
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):

        def work(fails: bool) -> list[Tensor]:
            results = []
            for _ in range(5):
                if fails:
                    with pytest.raises(RuntimeError):
                        machine.run(model, torch.randn(2, 31))
                else:
                    results.append(machine.run(model, x))
            return results

        with ThreadPoolExecutor(2) as threads:
            failing, working = threads.map(work, [True, False])
        assert not failing
        assert all(torch.equal(result, expected) for result in working)
