"""One state dict in two files, safetensors and GGUF: planned, placed and run; quantisation is all that differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_gguf import write_twins

from comfy_nodes.cli import main
from device_placement import EmulatedBackend, Hardware, PlacementPlan, place
from gguf_loader import LoadReport, PackedTensor, load_gguf, load_packed, packed_layers, read_header

diffusers = pytest.importorskip("diffusers")

MACHINE = ("--device", "gpu:0=1gb", "--device", "cpu=8gb", "--link", "cpu=20")
Build = Callable[[], torch.nn.Module]


def flux() -> torch.nn.Module:
    model: torch.nn.Module = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=3,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    return model.eval().requires_grad_(False)


def wan() -> torch.nn.Module:
    model: torch.nn.Module = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=128,
        num_layers=6,
    )
    return model.eval().requires_grad_(False)


def inputs_of(build: Build) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if build is wan:
        return {
            "hidden_states": noise(1, 4, 2, 8, 8),
            "timestep": torch.tensor([500]),
            "encoder_hidden_states": noise(1, 6, 32),
            "return_dict": False,
        }
    return {
        "hidden_states": noise(1, 16, 4),
        "encoder_hidden_states": noise(1, 6, 64),
        "pooled_projections": noise(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": noise(16, 3),
        "txt_ids": noise(6, 3),
        "return_dict": False,
    }


def run(model: torch.nn.Module, build: Build) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs_of(build))[0]
    return output


def plan_of(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> tuple[PlacementPlan, Hardware]:
    """What `torchspan plan` answers about a file of any kind."""
    assert main(["plan", str(file), "--spec", "gpu:0,40%;cpu,*", *MACHINE, *words, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    placement = PlacementPlan.from_json(json.dumps(document["plan"]))
    return placement, Hardware.from_json(json.dumps(document["hardware"]))


def blocks_of(placement: PlacementPlan) -> dict[str, set[str]]:
    """The repeated parts with their tensors. Single layers may join the rest: that depends on their share of bytes."""
    return {unit.path: {home.name for home in unit.homes} for unit in placement.units if unit.kind == "block"}


def names_of(placement: PlacementPlan) -> set[str]:
    return {home.name for unit in placement.units for home in unit.homes}


def quantised(build: Build, file: Path) -> tuple[torch.nn.Module, LoadReport]:
    """The model in a GGUF file, over the pages of the file."""
    model = build()
    report = load_packed(model, load_gguf(file, dtype=torch.float32).state_dict)
    return model, report


def dequantised(build: Build, file: Path) -> torch.nn.Module:
    """An ordinary model with the weights that the quantised ones stand for."""
    model = build()
    model.load_state_dict(load_gguf(file, dtype=torch.float32).state_dict)
    assert not list(packed_layers(model))
    assert not any(isinstance(parameter, PackedTensor) for parameter in model.parameters())
    return model


def placed_runs(
    model: torch.nn.Module, build: Build, placement: PlacementPlan, hardware: Hardware
) -> tuple[list[torch.Tensor], Mapping[str, int]]:
    """Two passes of the placed model, and the bytes that each device held."""
    with place(model, placement, backend=EmulatedBackend(hardware.links)) as handle:
        outputs = [run(model, build) for _ in range(2)]
        assert handle.stats().copies > 0
        return outputs, handle.stats().held_bytes


@pytest.mark.parametrize("policy", ["stripe", "contiguous"])
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("build", [flux, wan])
def test_quantisation_is_all_that_differs(
    build: Build, type_name: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    original = build()
    plain_file, gguf_file = write_twins(tmp_path, original.state_dict(), type_name)
    (plain_plan, hardware), (packed_plan, _) = (
        plan_of(capsys, file, "--policy", policy) for file in (plain_file, gguf_file)
    )
    assert blocks_of(packed_plan) == blocks_of(plain_plan)
    assert names_of(packed_plan) == names_of(plain_plan) == set(original.state_dict())
    assert packed_plan.size_bytes < 0.5 * plain_plan.size_bytes

    exact = run(original, build)
    outputs, _ = placed_runs(original, build, plain_plan, hardware)
    assert all(torch.equal(output, exact) for output in outputs)

    model, report = quantised(build, gguf_file)
    assert report.packed
    assert report.missing == report.unexpected == report.on_meta == report.dequantized == ()
    unplaced = run(model, build)
    outputs, held_bytes = placed_runs(model, build, packed_plan, hardware)
    assert all(torch.equal(output, unplaced) for output in outputs)
    assert torch.equal(unplaced, run(dequantised(build, gguf_file), build))
    assert not torch.equal(unplaced, exact)
    assert held_bytes == {
        "gpu:0": packed_plan.compute_peak_bytes + unsaved_bytes(model),
        "cpu": sum(
            padded(home.size_bytes) for unit in packed_plan.units for home in unit.homes if home.device == "cpu"
        ),
    }


def unsaved_bytes(model: torch.nn.Module) -> int:
    """Bytes of the buffers that no file has; they are always where the model computes."""
    saved = model.state_dict()
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in saved)


def padded(size_bytes: int) -> int:
    """A tensor in the buffer of its donor, with what is left free so that the next one is aligned."""
    return -(-size_bytes // 512) * 512


@pytest.mark.parametrize("build", [flux, wan])
def test_the_planned_bytes_are_those_of_the_file_and_of_the_model(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = write_twins(tmp_path, build().state_dict(), "Q5_0")
    placement, _ = plan_of(capsys, file)
    planned = {home.name: home.size_bytes for unit in placement.units for home in unit.homes}
    assert planned == {name: size_bytes for name, (_, size_bytes) in read_header(file).sizes().items()}
    model, _ = quantised(build, file)
    assert planned == {name: tensor.nbytes for name, tensor in model.state_dict().items()}


def test_a_model_built_without_memory_is_placed_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    _, file = write_twins(tmp_path, flux().state_dict())
    placement, hardware = plan_of(capsys, file)

    def without_memory() -> torch.nn.Module:
        with torch.device("meta"):
            return flux()

    model, report = quantised(without_memory, file)
    assert report.on_meta == ()
    outputs, _ = placed_runs(model, flux, placement, hardware)
    assert torch.equal(outputs[0], run(quantised(flux, file)[0], flux))
