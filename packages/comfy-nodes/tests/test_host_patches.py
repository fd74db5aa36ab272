"""The law of patches: a placed or packed model with any change equals its dense twin on one device, bit by bit."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from host_patches import WEIGHT_KINDS, patch_file
from host_testing import Host, comfyui, host, request
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host"]
pytestmark = pytest.mark.host

SPLIT = "npu:0,1mb;npu:1,1mb;cpu,*"
CASES = (("plain", SPLIT), ("packed", None), ("packed", SPLIT), ("packed", "cpu,*"))
LAW = settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.generate],  # each example samples two models: no time to shrink it
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def files(host: Host) -> st.SearchStrategy[dict[str, Any]]:
    """Changes of some layers of the tiny model, each of any kind."""
    weights = importlib.import_module("comfyui_checkpoints").diffusion_weights(host.name)
    layers = [name.removesuffix(".weight") for name, tensor in weights.items() if tensor.ndim == 2 and "block" in name]
    known = host.module("comfy.weight_adapter").adapter_maps
    kinds = [kind for kind in WEIGHT_KINDS if kind in ("dora", "diff", "set") or _adapter_of(kind) in known]
    return st.builds(
        lambda chosen, biases, vectors, seed: patch_file(weights, chosen, biases=biases, vectors=vectors, seed=seed),
        st.dictionaries(st.sampled_from(layers), st.sampled_from(kinds), min_size=1, max_size=6),
        st.booleans(),
        st.booleans(),
        st.integers(0, 99),
    )


def _adapter_of(kind: str) -> str:
    return {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA", "oft": "OFT", "boft": "BOFT"}[kind]


def pair(host: Host, kind: str, spec: str | None) -> tuple[Any, Any]:
    """The dense twin on one device, as the stock loader makes it, and ours."""
    if kind == "plain":
        return host.stock(host.diffusion()), adapter.load_diffusion_model(host.diffusion(), request(spec)).value
    packed = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(spec)).value
    return host.stock(host.diffusion("dense")), packed


def patched(host: Host, model: Any, file: dict[str, Any], strength: float) -> Any:
    return host.module("comfy.sd").load_lora_for_models(model, None, file, strength, 0)[0]


@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_any_change_of_weights_gives_the_bits_of_the_dense_twin(host: Host, kind: str, spec: str | None) -> None:
    stock, ours = pair(host, kind, spec)
    plain = host.sample(stock)

    @LAW
    @given(files(host), st.sampled_from([1.0, -0.6]), st.booleans())
    def law(file: dict[str, Any], strength: float, twice: bool) -> None:
        expected, got = patched(host, stock, file, strength), patched(host, ours, file, strength)
        if twice:
            expected, got = patched(host, expected, file, 0.5), patched(host, got, file, 0.5)
        wanted = host.sample(expected)
        assert not torch.equal(wanted, plain)
        assert torch.equal(host.sample(got), wanted)

    law()
    assert torch.equal(host.sample(ours), plain)


@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_any_hooked_change_gives_the_bits_of_the_dense_twin(host: Host, kind: str, spec: str | None) -> None:
    stock, ours = pair(host, kind, spec)
    plain = host.sample(stock)

    @LAW
    @given(files(host), files(host))
    def law(file: dict[str, Any], beside: dict[str, Any]) -> None:
        def hooked(model: Any) -> torch.Tensor:
            hooks = host.module("comfy.hooks").create_hook_lora(file, 0.8, 0.0)
            return host.sample(patched(host, model, beside, 0.7), hooks=hooks)

        assert torch.equal(hooked(ours), hooked(stock))

    law()
    assert torch.equal(host.sample(ours), plain)


MERGES = {
    "ModelMergeSimple": {"ratio": 0.3},
    "ModelSubtract": {"multiplier": 0.5},
    "ModelAdd": {},
    "ModelMergeBlocks": {"input": 0.4, "middle": 0.5, "out": 0.6},
}


@pytest.mark.parametrize(("kind", "spec"), CASES)
@pytest.mark.parametrize("into_ours", [True, False])
def test_a_merge_gives_the_bits_of_the_dense_twin(host: Host, kind: str, spec: str | None, into_ours: bool) -> None:
    """Each merging node of the host, with ours as the model that is changed and as the one that is added."""
    nodes = host.module("comfy_extras.nodes_model_merging")
    stock, ours = pair(host, kind, spec)
    other = host.stock(host.diffusion("bfloat16"))

    @settings(LAW, max_examples=2)
    @given(files(host))
    def law(file: dict[str, Any]) -> None:
        for name, options in MERGES.items():

            def merged(model: Any) -> torch.Tensor:
                changed = patched(host, model, file, 0.7)
                first, second = (changed, other) if into_ours else (other, changed)
                return host.sample(getattr(nodes, name)().merge(first, second, **options)[0])  # noqa: B023

            assert torch.equal(merged(ours), merged(stock)), name

    law()


@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_a_patched_model_that_is_offloaded_in_part_gives_the_bits_of_the_dense_twin(
    host: Host, kind: str, spec: str | None
) -> None:
    stock, ours = pair(host, kind, spec)
    weights = importlib.import_module("comfyui_checkpoints").diffusion_weights(host.name)
    layers = [name.removesuffix(".weight") for name, tensor in weights.items() if tensor.ndim == 2 and "block" in name]
    file = patch_file(weights, dict.fromkeys(layers, "lora"), biases=True, vectors=True, seed=1)
    expected = host.sample(patched(host, stock, file, 0.7))
    got = patched(host, ours, file, 0.7)
    assert torch.equal(host.sample(got), expected)
    host.management.load_models_gpu([got])
    got.partially_unload(torch.device("cpu"), got.loaded_size() // 2)
    assert torch.equal(host.sample(got), expected)
