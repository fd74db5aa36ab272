"""Hosts that lack an interface: each probe looks for the thing itself, and what it stands for is done another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized

from comfy_nodes import host as adapter
from gguf_loader import PackedTensor

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host


@pytest.fixture
def compat(host: Host) -> Any:
    from comfy_nodes.host.app import _compat

    return _compat


def test_arguments_are_passed_to_hosts_that_take_them(compat: Any) -> None:
    def newer(path: str, metadata: object = None, disable_dynamic: bool = False) -> None: ...

    def older(path: str) -> None: ...

    assert compat.classic(newer) == {"disable_dynamic": True}
    assert compat.with_metadata(newer, {"a": "b"}) == {"metadata": {"a": "b"}}
    assert compat.classic(older) == compat.with_metadata(older, {"a": "b"}) == {}


def test_metadata_is_read_where_the_host_can_return_it(
    compat: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(host.diffusion())
    weights, _ = compat.read_torch_file(path)
    utils = host.module("comfy.utils")
    load: Callable[..., Any] = utils.load_torch_file
    monkeypatch.setattr(utils, "load_torch_file", lambda ckpt, safe_load=False: load(ckpt, safe_load=safe_load))
    older, nothing = compat.read_torch_file(path)
    assert weights.keys() == older.keys()
    assert nothing is None


def test_dynamic_vram_is_seen_by_the_class_that_the_host_uses(
    compat: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    patchers = host.module("comfy.model_patcher")
    assert not compat.dynamic_vram_is_on()
    monkeypatch.setattr(patchers, "CoreModelPatcher", type("Dynamic", (patchers.ModelPatcher,), {}), raising=False)
    assert compat.dynamic_vram_is_on()
    monkeypatch.delattr(patchers, "CoreModelPatcher")
    assert not compat.dynamic_vram_is_on()


@pytest.mark.parametrize("answer", [True, False])
def test_a_patcher_says_itself_whether_it_is_dynamic(compat: Any, answer: bool) -> None:
    assert compat.is_dynamic(SimpleNamespace(is_dynamic=lambda: answer)) == answer
    assert not compat.is_dynamic(SimpleNamespace())


def test_the_seed_of_rounding_is_the_hosts_wherever_it_keeps_it(
    compat: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils, patchers = host.module("comfy.utils"), host.module("comfy.model_patcher")
    home = utils if hasattr(utils, "string_to_seed") else patchers
    seed = home.string_to_seed("blocks.0.weight")
    assert compat.seed_of("blocks.0.weight") == seed
    monkeypatch.delattr(utils, "string_to_seed", raising=False)
    monkeypatch.setattr(patchers, "string_to_seed", lambda key: -seed, raising=False)
    assert compat.seed_of("blocks.0.weight") == -seed


def test_patches_are_computed_in_the_type_of_the_host(compat: Any, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.management, "lora_compute_dtype", lambda device: torch.bfloat16, raising=False)
    assert compat.patch_dtype(torch.device("npu:0")) is torch.bfloat16
    monkeypatch.delattr(host.management, "lora_compute_dtype")
    assert compat.patch_dtype(torch.device("npu:0")) is torch.float32


@pytest.mark.parametrize(("streams", "count"), [(2, 2), (0, 0), (None, 0)])
def test_a_host_that_knows_no_streams_copies_without_them(
    compat: Any, host: Host, monkeypatch: pytest.MonkeyPatch, streams: int | None, count: int
) -> None:
    monkeypatch.setattr(host.management, "NUM_STREAMS", streams, raising=False)
    assert compat.stream_count() == count
    monkeypatch.delattr(host.management, "NUM_STREAMS")
    assert compat.stream_count() == 0


def test_buffers_for_streams_are_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for streams in (0, 2):
        monkeypatch.setattr(host.management, "NUM_STREAMS", streams, raising=False)
        model = adapter.load_diffusion_model(host.diffusion(), request("npu:0,0mb;npu:1,*")).value
        sizes.append(model.model_size())
        largest = model.placement.largest_layer_bytes
    assert sizes[1] - sizes[0] == 2 * largest


def test_a_loader_that_does_not_look_at_its_options_is_put_right(compat: Any) -> None:
    patcher = SimpleNamespace(load_device="npu:0", offload_device="npu:0")
    assert compat.aim(patcher, {"load_device": "npu:2", "dtype": torch.float16}) is patcher
    assert (patcher.load_device, patcher.offload_device) == ("npu:2", "npu:0")


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_cast_by_hosts_that_release_them_and_by_those_that_do_not(
    compat: Any, host: Host, monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    ops = host.module("comfy.ops")
    layer = ops.manual_cast.Linear(4, 4, bias=bias, dtype=torch.float32)
    layer.weight = torch.nn.Parameter(torch.eye(4), requires_grad=False)
    if bias:
        layer.bias = torch.nn.Parameter(torch.arange(4.0), requires_grad=False)
    there = torch.zeros(1, 4, dtype=torch.bfloat16, device="npu:1")
    cast: Callable[..., Any] = ops.cast_bias_weight
    for older in (False, True):
        if older:
            monkeypatch.setattr(ops, "cast_bias_weight", lambda s, input: cast(s, input))
        with compat.cast_weights(layer, there) as (weight, moved):
            assert weight.device == there.device and weight.dtype == there.dtype
            assert torch.equal(weight.cpu().float(), torch.eye(4))
            assert (moved is None) != bias


SPECS = (None, "npu:0,500kb;npu:1,500kb;cpu,*", "npu:0,0mb;npu:1,*")


@pytest.fixture
def without_layouts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hosts before 0.8 are given: packed tensors that they do not know."""
    from comfy_nodes.host.packed import _gguf_layout
    from comfy_nodes.host.packed import _gguf_operations as _gguf_ops

    for module in (_gguf_layout, _gguf_ops):
        monkeypatch.setattr(module, "HAS_LAYOUTS", False)


@pytest.mark.usefixtures("sized", "without_layouts")
@pytest.mark.parametrize("spec", SPECS)
def test_packed_models_of_hosts_without_layouts_equal_their_dense_twins(host: Host, spec: str | None) -> None:
    stock = host.stock(host.diffusion("dense"))
    plain, patched = host.sample(stock), host.sample(host.lora(stock, 0.8))
    host.free_all()
    model = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(spec)).value
    assert any(isinstance(parameter.data, PackedTensor) for parameter in model.model.parameters())
    assert torch.equal(host.sample(model), plain)
    assert torch.equal(host.sample(host.lora(model, 0.8)), patched)
    host.management.unload_all_models()
    assert host.used() == [0] * 4
    assert torch.equal(host.sample(model), plain)


@pytest.mark.usefixtures("sized", "without_layouts")
def test_the_type_of_dequantisation_is_honoured_without_layouts(host: Host) -> None:
    def sampled(dequant_dtype: str) -> torch.Tensor:
        loaded = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(None), dequant_dtype=dequant_dtype)
        return host.sample(loaded.value)

    exact = sampled("default")
    assert torch.equal(sampled("float32"), exact)
    assert 0 < (sampled("float16") - exact).abs().max() < 0.05


def test_a_vae_of_a_host_without_a_way_to_load_it_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_nodes.host.loaders._parts import load_vae_file

    monkeypatch.delattr(host.module("comfy.sd"), "load_vae_patcher", raising=False)
    path: Path = host.models / "vae" / "tiny_vae.safetensors"
    vae = load_vae_file(path, request("npu:0,100kb;npu:1,*")).value
    assert getattr(vae.patcher, "cached_patcher_init", None) is None
