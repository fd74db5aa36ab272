"""LoRA on placed models: what the stock host makes of them, and no byte moved that need not move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized

import simdev
from comfy_nodes import host as adapter

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host

SPECS = ("npu:0,1mb;npu:1,1mb;cpu,*", "npu:0,0mb;npu:1,*", "cpu,*")


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_lora_gives_the_picture_of_a_single_device(host: Host, spec: str, weight_dtype: str) -> None:
    path = host.diffusion()
    options: dict[str, Any] = {} if weight_dtype == "default" else {"dtype": torch.float8_e4m3fn}
    stock = host.stock(path, **options)
    expected = {strength: host.sample(host.lora(stock, strength)) for strength in (1.0, 0.5)}
    plain = host.sample(stock)
    host.free_all()
    model = adapter.load_diffusion_model(path, request(spec), weight_dtype=weight_dtype).value
    for strength, wanted in expected.items():
        assert not torch.equal(wanted, plain)
        assert torch.equal(host.sample(host.lora(model, strength)), wanted)
    assert torch.equal(host.sample(model), plain)


def test_two_loras_and_their_order(host: Host) -> None:
    path = host.diffusion()
    expected = host.sample(host.lora(host.lora(host.stock(path), 0.7), -0.3))
    model = adapter.load_diffusion_model(path, request(SPECS[0])).value
    assert torch.equal(host.sample(host.lora(host.lora(model, 0.7), -0.3)), expected)


def test_a_change_of_strength_moves_no_weight_of_a_donor(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request("npu:0,0mb;npu:1,*")).value
    host.sample(host.lora(model, 1.0))
    changed = host.lora(model, 0.5)
    simdev.reset()
    host.management.load_models_gpu([changed])
    assert simdev.links() == ()


def test_a_change_of_strength_touches_what_the_lora_patches_and_nothing_else(sized: Host, host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[0])).value
    first = host.lora(model, 1.0)
    host.sample(first)
    patched = set(first.backup)
    resident_bytes = sum(host.module("comfy.utils").get_attr(model.model, key).nbytes for key in patched)
    low_rank_bytes = sum(
        tensor.nbytes
        for key in patched
        for patch in first.patches[key]
        for tensor in patch[1].weights
        if isinstance(tensor, torch.Tensor)
    )
    changed = host.lora(model, 0.5)
    simdev.reset()
    host.management.load_models_gpu([changed])
    sent = sum(link.bytes for link in simdev.links())
    assert 0 < sent <= resident_bytes + low_rank_bytes
    assert resident_bytes < model.share_bytes()


def test_taking_a_lora_off_restores_every_weight(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[0])).value
    host.management.load_models_gpu([model])
    before = {name: tensor.cpu() for name, tensor in model.model.state_dict().items()}
    host.sample(host.lora(model, 1.0))
    host.management.load_models_gpu([model])
    after = {name: tensor.cpu() for name, tensor in model.model.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(getattr(layer, "weight_function", ()) for layer in model.model.modules())


def test_a_lora_never_writes_to_a_donors_weight(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[0])).value
    before = {name: layer.weight.clone().cpu() for name, layer in model.lent_layers()}
    host.sample(host.lora(model, 1.0))
    assert all(torch.equal(before[name], layer.weight.cpu()) for name, layer in model.lent_layers())


@pytest.mark.parametrize("spec", [None, *SPECS])
def test_a_lora_on_packed_weights_equals_one_on_their_dense_twin(host: Host, spec: str | None) -> None:
    stock = host.stock(host.diffusion("dense"))
    plain, expected = host.sample(stock), host.sample(host.lora(stock, 0.8))
    host.free_all()
    model = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(spec)).value
    assert torch.equal(host.sample(host.lora(model, 0.8)), expected)
    assert torch.equal(host.sample(model), plain)
