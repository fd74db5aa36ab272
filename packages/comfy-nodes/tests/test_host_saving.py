"""Placed models that the host saves: the file that a single device gives, or a refusal in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request
from safetensors.torch import load_file

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host"]
pytestmark = pytest.mark.host

SPECS = ("npu:0,1mb;npu:1,1mb;cpu,*", "npu:0,0mb;npu:1,*", "cpu,*")


def saved(host: Host, model: Any, path: Path) -> dict[str, torch.Tensor]:
    host.module("comfy.sd").save_checkpoint(str(path), model)
    return load_file(path)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_a_placed_model_is_saved_as_one_on_a_single_device(
    host: Host, tmp_path: Path, spec: str, strength: float
) -> None:
    expected = saved(host, host.lora(host.stock(host.diffusion()), strength), tmp_path / "stock.safetensors")
    host.free_all()
    model = host.lora(adapter.load_diffusion_model(host.diffusion(), request(spec)).value, strength)
    sampled = host.sample(model)
    path = tmp_path / "placed.safetensors"
    is_lent_patched = any(f"{name}.weight" in model.patches for name, _ in model.lent_layers())
    if is_lent_patched and not hasattr(host.module("comfy.model_patcher").ModelPatcher, "state_dict_for_saving"):
        with pytest.raises(adapter.HostError, match="its patches have to be written"):
            saved(host, model, path)
    else:
        written = saved(host, model, path)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[key], expected[key]) for key in expected)
    assert torch.equal(host.sample(model), sampled)


def test_patches_that_are_to_be_written_into_weights_of_donors_are_refused(host: Host) -> None:
    model = host.lora(adapter.load_diffusion_model(host.diffusion(), request("npu:0,0mb;npu:1,*")).value, 0.8)
    sampled = host.sample(model)
    host.free_all()
    with pytest.raises(adapter.HostError, match="load it with the plain node to save it"):
        host.management.load_models_gpu([model], force_patch_weights=True)
    assert torch.equal(host.sample(model), sampled)


def test_a_model_without_patches_may_be_asked_to_have_them_written(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(SPECS[0])).value
    sampled = host.sample(model)
    host.management.load_models_gpu([model], force_patch_weights=True)
    assert torch.equal(host.sample(model), sampled)


@pytest.mark.parametrize("spec", [None, SPECS[0]])
def test_a_model_of_packed_weights_is_not_saved_as_something_else(host: Host, tmp_path: Path, spec: str | None) -> None:
    model = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(spec)).value
    expected = host.sample(model)
    with pytest.raises(
        adapter.HostError, match="GGUF blocks cannot be saved as a checkpoint; save the model from a file"
    ):
        saved(host, model, tmp_path / "packed.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(host.sample(model), expected)
