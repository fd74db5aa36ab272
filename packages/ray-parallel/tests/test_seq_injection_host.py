"""A plan injected into ComfyUI's own model patcher and sampler: clones, errors and other overrides included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sequence_host import MISSING, found, host, options
from sequence_tiny import normal, seeded
from torch import Tensor, nn

from ray_parallel.sequence import Parallel, ThreadComm, find, injection, parallelize, run_threads
from ray_parallel.sequence.plans import ENTRIES

pytestmark = [pytest.mark.host, pytest.mark.skipif(not found(), reason=MISSING)]

LATENT = (1, 16, 3, 10, 6)


def patcher() -> Any:
    """A tiny Wan 2.1 of the host, in its patcher, on the CPU."""
    settings = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "in_dim": 16,
        "dim": 96,
        "ffn_dim": 96,
        "freq_dim": 32,
        "text_dim": 20,
        "out_dim": 16,
        "num_heads": 4,
        "num_layers": 3,
        "cross_attn_norm": True,
    }
    config = host("comfy.supported_models").WAN21_T2V(settings)
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = options()["operations"]
    cpu = torch.device("cpu")
    model = host("comfy.model_base").WAN21(config, image_to_video=False, device=cpu)
    seeded(model.diffusion_model)
    return host("comfy.model_patcher").ModelPatcher(model, cpu, cpu)


def sample(model: Any) -> Tensor:
    """Three steps of the host's sampler with guidance; the two prompts have different lengths."""
    latent = torch.zeros(LATENT)
    noise = host("comfy.sample").prepare_noise(latent, 5)
    positive, negative = ([[normal(1, length, 20, seed=length), {}]] for length in (7, 9))
    out: Tensor = host("comfy.sample").sample(
        model, noise, 3, 5.0, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=5
    )
    return out


@dataclass(slots=True)
class Injected:
    """A clone of a patcher with the plan injected, and how often the host did it.

    The host injects when it loads the clone and keeps it so until it loads another one.
    """

    base: Any
    clone: Any
    times: int = 0


def injected(comm: ThreadComm) -> Injected:
    base = patcher()
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
    want = sample(patcher())

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

    want = sample(with_override(patcher()))
    assert set(seen) == {4}
    seen.clear()
    run_threads(2, lambda comm: near(sample(with_override(injected(comm).clone)), want))
    assert 2 in seen, "self-attention shows it half of the heads on each of two ranks"
