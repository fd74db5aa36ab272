"""Placed models that the host saves: the file that a single device gives, or a refusal in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized
from safetensors.torch import load_file

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host", "sized"]
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("sized")]

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
    written = saved(host, model, tmp_path / "placed.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)
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
