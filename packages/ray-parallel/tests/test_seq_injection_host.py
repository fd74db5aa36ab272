"""A plan injected into ComfyUI's own model patcher and sampler: clones, errors and other overrides included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sequence_host import MISSING, found, host
from sequence_sampling import patcher, sample
from torch import Tensor, nn

from ray_parallel.sequence import Parallel, ThreadComm, find, injection, parallelize, run_threads
from ray_parallel.sequence.plans import ENTRIES

pytestmark = [pytest.mark.host, pytest.mark.skipif(not found(), reason=MISSING)]


@dataclass(slots=True)
class Injected:
    """A clone of a patcher with the plan injected, and how often the host did it.

    The host injects when it loads the clone and keeps it so until it loads another one.
    """

    base: Any
    clone: Any
    times: int = 0


def injected(comm: ThreadComm) -> Injected:
    base = patcher(heads=4, layers=3)
    entry = find(base.model.diffusion_model, ENTRIES)
    it = Injected(base, base.clone())

    def install(model: nn.Module) -> Parallel:
        it.times += 1
        return parallelize(model, entry.plan, comm)

    kind: Callable[..., Any] = host("comfy.model_patcher").PatcherInjection
    it.clone.set_injections("ray_parallel", [injection(kind, install)])
    return it


def hooked(model: Any) -> bool:
    return any(module._forward_pre_hooks for module in model.model.diffusion_model.modules())


def near(out: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize("ranks", [1, 2])
def test_only_the_patched_clone_runs_in_parallel(ranks: int) -> None:
    want = sample(patcher(heads=4, layers=3))

    def rank(comm: ThreadComm) -> None:
        it = injected(comm)
        near(sample(it.clone), want)
        times, sent = it.times, comm.traffic.total_bytes
        assert times > 0
        assert bool(sent) == (ranks > 1)
        near(sample(it.base), want)
        assert not hooked(it.base)
        assert (it.times, comm.traffic.total_bytes) == (times, sent)
        near(sample(it.clone.clone()), want)
        assert it.times > times
        assert comm.traffic.total_bytes == 2 * sent

    run_threads(ranks, rank)


def test_nothing_is_left_after_an_error() -> None:
    def rank(comm: ThreadComm) -> None:
        it = injected(comm)
        extension = host("comfy.patcher_extension")
        it.clone.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "fails", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(it.clone)
        assert it.times > 0
        assert torch.overrides._get_current_function_mode_stack() == []  # type: ignore[no-untyped-call]
        it.clone.detach()
        assert not hooked(it.clone)

    run_threads(1, rank)


def test_an_override_of_another_node_is_called_too() -> None:
    seen: list[int] = []

    def override(function: Any, *args: Any, **more: Any) -> Tensor:
        seen.append(more["heads"])
        out: Tensor = function(*args, **more) * 1.5
        return out

    def with_override(model: Any) -> Any:
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    want = sample(with_override(patcher(heads=4, layers=3)))
    assert set(seen) == {4}
    seen.clear()
    run_threads(2, lambda comm: near(sample(with_override(injected(comm).clone)), want))
    assert 2 in seen, "self-attention shows it half of the heads on each of two ranks"
