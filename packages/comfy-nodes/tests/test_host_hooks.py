"""The host's hooks on placed models: weights that are changed for a part of the sampling, and changed back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host"]
pytestmark = pytest.mark.host

SPECS = ("npu:0,1mb;npu:1,1mb;cpu,*", "npu:0,0mb;npu:1,*", "cpu,*")


def hook(host: Host, strength: float = 1.0) -> Any:
    """The tiny LoRA as a hook of the conditioning."""
    weights = host.module("comfy.utils").load_torch_file(
        str(host.models / "loras" / f"tiny_{host.name}_lora.safetensors")
    )
    return host.module("comfy.hooks").create_hook_lora(weights, strength, 0.0)


def scheduled(host: Host) -> Any:
    """The same, strong in the first step and gone in the second."""
    hooks = host.module("comfy.hooks")
    frames = hooks.HookKeyframeGroup()
    frames.add(hooks.HookKeyframe(1.0, start_percent=0.0))
    frames.add(hooks.HookKeyframe(0.0, start_percent=0.3))
    group = hook(host)
    group.set_keyframes_on_hooks(frames)
    return group


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("make", [hook, scheduled])
def test_a_hooked_lora_gives_the_picture_of_a_single_device(host: Host, spec: str, make: Any) -> None:
    stock = host.stock(host.diffusion())
    plain, expected = host.sample(stock), host.sample(stock, hooks=make(host))
    assert not torch.equal(plain, expected)
    host.free_all()
    model = adapter.load_diffusion_model(host.diffusion(), request(spec)).value
    assert torch.equal(host.sample(model, hooks=make(host)), expected)
    assert torch.equal(host.sample(model, hooks=make(host)), expected)
    assert torch.equal(host.sample(model), plain)


def test_two_schedules_differ(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[0])).value
    assert not torch.equal(host.sample(model, hooks=hook(host)), host.sample(model, hooks=scheduled(host)))


def test_every_weight_is_restored_where_it_lives(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[0])).value
    host.sample(model)
    before = {name: (tensor.device, tensor.cpu().clone()) for name, tensor in model.model.state_dict().items()}
    host.sample(model, hooks=hook(host))
    model.clean_hooks()
    for name, tensor in model.model.state_dict().items():
        assert tensor.device == before[name][0], name
        assert torch.equal(tensor.cpu(), before[name][1]), name


@pytest.mark.parametrize("spec", SPECS)
def test_a_hook_beside_a_lora_gives_the_picture_of_a_single_device(host: Host, spec: str) -> None:
    stock = host.lora(host.stock(host.diffusion()), 0.7)
    expected, without = host.sample(stock, hooks=hook(host, -0.4)), host.sample(stock)
    host.free_all()
    model = host.lora(adapter.load_diffusion_model(host.diffusion(), request(spec)).value, 0.7)
    assert torch.equal(host.sample(model, hooks=hook(host, -0.4)), expected)
    assert torch.equal(host.sample(model), without)


def test_a_hook_never_writes_to_a_donors_weight(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[1])).value
    host.management.load_models_gpu([model])
    changed_at_use = []

    def watch(layer: torch.nn.Linear) -> None:
        before = layer.weight.clone()

        def compare(*_: object) -> None:
            assert torch.equal(layer.weight, before)
            changed_at_use.append(len(layer.weight_function))  # type: ignore[arg-type]

        layer.register_forward_hook(compare)

    for _, layer in model.lent_layers():
        watch(layer)
    host.sample(model, hooks=hook(host))
    assert any(changed_at_use)


@pytest.mark.parametrize("spec", [None, *SPECS])
@pytest.mark.parametrize("make", [hook, scheduled])
def test_a_hook_on_packed_weights_equals_one_on_their_dense_twin(host: Host, spec: str | None, make: Any) -> None:
    stock = host.stock(host.diffusion("dense"))
    plain, expected = host.sample(stock), host.sample(stock, hooks=make(host))
    host.free_all()
    model = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(spec)).value
    assert torch.equal(host.sample(model, hooks=make(host)), expected)
    assert torch.equal(host.sample(model, hooks=make(host)), expected)
    assert torch.equal(host.sample(model), plain)


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_hook_that_goes_over_to_another_model(host: Host, kind: str, strength: float) -> None:
    """The weights of another model as a hook: the difference to those without any patch is added."""
    other = {key: 1.1 * value for key, value in host.stock(host.diffusion()).model.state_dict().items()}
    other = {key: value for key, value in other.items() if key.endswith(".weight") and "block" in key}

    def over() -> Any:
        return host.module("comfy.hooks").create_hook_model_as_lora(other, None, strength, 0.0)

    stock = host.lora(host.stock(host.diffusion("plain" if kind == "plain" else "dense")), 0.3)
    expected, without = host.sample(stock, hooks=over()), host.sample(stock)
    assert not torch.equal(expected, without)
    host.free_all()
    load = adapter.load_diffusion_model if kind == "plain" else adapter.load_gguf_diffusion_model
    model = host.lora(load(host.diffusion(kind), request(SPECS[0])).value, 0.3)
    assert torch.equal(host.sample(model, hooks=over()), expected)
    assert torch.equal(host.sample(model), without)
