"""The plan that the command prints for a file is a plan that the model in the file runs on, with the same output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_testing import run_torchspan

from device_placement import EmulatedBackend, Hardware, PlacementPlan, place

diffusers = pytest.importorskip("diffusers")


def tiny_flux() -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=4,
        num_single_layers=6,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.randn(6, 3),
        "return_dict": False,
    }
    return model, inputs


def tiny_unet() -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(1, 4, 32),
        "return_dict": False,
    }
    return model, inputs


@pytest.mark.parametrize("build", [tiny_flux, tiny_unet])
@pytest.mark.parametrize("policy", ["stripe", "contiguous"])
def test_a_diffusers_file_is_planned_by_the_command_and_runs_on_the_plan(
    build: Any, policy: str, tmp_path: Path
) -> None:
    model, inputs = build()
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    machine = ("--device", "gpu:0=1gb", "--device", "cpu=8gb", "--link", "cpu=20")
    done = run_torchspan("plan", file, "--spec", "gpu:0,40%;cpu,*", *machine, "--policy", policy, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    placement = PlacementPlan.from_json(json.dumps(document["plan"]))
    hardware = Hardware.from_json(json.dumps(document["hardware"]))
    assert placement.streamed_bytes > placement.size_bytes / 2
    with torch.no_grad():
        before = model(**inputs)[0]
        with place(model, placement, backend=EmulatedBackend(hardware.links)) as handle:
            for _ in range(2):
                assert torch.equal(model(**inputs)[0], before)
            assert handle.stats().copies > 0
