"""Quantised models on simulated devices: packed where they live and on the way, adapters beside them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cli_gguf import write_gguf
from torch import nn

from block_discovery import discover_names
from device_placement import Device, Hardware, Link, PlacedModel, PlacementPlan, place, plan
from gguf_loader import (
    LowRank,
    PackedTensor,
    add_lora,
    load_gguf,
    load_packed,
    packed_layers,
    read_header,
    remove_lora,
    set_lora_strength,
)

WIDTH = 96
MIB = 1 << 20
DONORS = ("cpu", "sim:1")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.down(nn.functional.silu(self.up(self.norm(x))))
        return result


class Model(nn.Module):
    """Eight blocks behind a table of rows and in front of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(512, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(8))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x)
        return result


TOKENS = torch.tensor([[0, 17, 511, 17]])
LAYERS = ("blocks.0.up", "blocks.3.down", "blocks.7.up")


@pytest.fixture(params=["Q8_0", "Q4_1"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_gguf(tmp_path / "model.gguf", Model().state_dict(), request.param)


def loaded(file: Path) -> Model:
    with torch.device("meta"):
        model = Model().eval()
    load_packed(model, load_gguf(file, dtype=torch.float32).state_dict)
    return model


def run(model: nn.Module, device: str = "cpu") -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS.to(device)).cpu()
    return result


def planned(file: Path, spec: str) -> PlacementPlan:
    """A plan from the header of the file."""
    devices = [Device(name=name, total_bytes=256 * MIB, free_bytes=256 * MIB) for name in ("sim:0", "sim:1", "cpu")]
    links = [Link(source=name, target="sim:0", gb_per_second=10) for name in DONORS]
    hardware = Hardware(compute="sim:0", devices=tuple(devices), links=tuple(links))
    return plan(discover_names(read_header(file).sizes()), spec, hardware)


SPECS = ("sim:0,30%;cpu,*", "sim:0,20%;sim:1,40%;cpu,*", "sim:0,0b;cpu,*")


@contextmanager
def placed(file: Path, model: Model, spec: str = SPECS[0]) -> Iterator[PlacedModel]:
    with place(model, planned(file, spec)) as handle:
        yield handle


@pytest.mark.parametrize("spec", SPECS)
def test_a_placed_quantised_model_computes_the_same_bits(sim: types.ModuleType, file: Path, spec: str) -> None:
    model = loaded(file)
    expected = run(model)
    with placed(file, model, spec) as handle:
        for _ in range(3):
            assert torch.equal(run(model, "sim:0"), expected)
        assert handle.stats().copies > 0
    model.to("cpu")
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_every_device_holds_packed_bytes_as_planned(sim: types.ModuleType, file: Path, spec: str) -> None:
    model = loaded(file)
    packed = {f"{name}.weight" for name, _ in packed_layers(model)}
    assert len(packed) == 18
    placement = planned(file, spec)
    with place(model, placement) as handle:
        run(model, "sim:0")
        held_bytes = handle.stats().held_bytes
        assert held_bytes["sim:0"] == placement.compute_peak_bytes
        assert sum(held_bytes.values()) - placement.slots * placement.slot_bytes < 1.1 * file.stat().st_size
        homes = {home.name: home for unit in placement.units for home in unit.homes}
        for name, tensor in model.state_dict().items():
            assert str(tensor.device) == homes[name].device
            assert tensor.nbytes == homes[name].size_bytes
            assert isinstance(tensor, PackedTensor) == (name in packed)


def test_what_is_copied_is_packed(sim: types.ModuleType, file: Path) -> None:
    model = loaded(file)
    placement = planned(file, "sim:0,0b;cpu,*")
    with place(model, placement) as handle:
        for _ in range(4):
            run(model, "sim:0")
        stats = handle.stats()
    assert sum(stats.copied_bytes.values()) <= 5 * placement.streamed_bytes * 1.1


def test_a_quantised_model_reloads_while_placed(sim: types.ModuleType, file: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    kind = next(tensor for tensor in loaded(file).state_dict().values() if isinstance(tensor, PackedTensor)).ggml_type
    other = loaded(write_gguf(tmp_path / "other.gguf", Model().state_dict(), kind.name))
    model = loaded(file)
    with placed(file, model):
        assert not torch.equal(run(model, "sim:0"), run(other))
        model.load_state_dict(other.state_dict())
        assert torch.equal(run(model, "sim:0"), run(other))


def adapters(rank: int = 4) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(5)
    found = {}
    for path in LAYERS:
        wide_in, wide_out = (WIDTH, 4 * WIDTH) if path.endswith("up") else (4 * WIDTH, WIDTH)
        down = torch.randn(rank, wide_in, generator=generator) / 8
        found[path] = LowRank(down=down, up=torch.randn(wide_out, rank, generator=generator) / 8)
    return found


def blocks_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all packed blocks."""
    return {
        name: tensor.packed.cpu().clone()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, PackedTensor)
    }


def by_strength(file: Path, strengths: tuple[float, ...]) -> list[torch.Tensor]:
    """What an unplaced model computes at each strength."""
    model = loaded(file)
    add_lora(model, "style", adapters())
    outputs = []
    for strength in strengths:
        set_lora_strength(model, "style", strength)
        outputs.append(run(model))
    return outputs


STRENGTHS = (1.0, 0.0, -0.5, 0.3)


def test_an_adapter_works_on_a_placed_model_and_its_strength_touches_no_weight(
    sim: types.ModuleType, file: Path
) -> None:
    expected = by_strength(file, STRENGTHS)
    assert len({output.sum().item() for output in expected}) == len(STRENGTHS)
    model = loaded(file)
    add_lora(model, "style", adapters())
    blocks = blocks_of(model)
    with placed(file, model):
        for strength, output in zip(STRENGTHS, expected, strict=True):
            set_lora_strength(model, "style", strength)
            for _ in range(2):
                assert torch.equal(run(model, "sim:0"), output)
        after = blocks_of(model)
        assert all(torch.equal(after[name], before) for name, before in blocks.items())


def test_a_change_of_strength_fetches_nothing_again(sim: types.ModuleType, file: Path) -> None:
    model = loaded(file)
    add_lora(model, "style", adapters())
    with placed(file, model) as handle:
        for strength in (1.0, 0.5, 0.25):
            set_lora_strength(model, "style", strength)
            run(model, "sim:0")
        assert handle.stats().refetches == 0


def test_an_adapter_may_come_and_go_while_the_model_is_placed(sim: types.ModuleType, file: Path) -> None:
    model = loaded(file)
    plain = run(model)
    (with_adapter,) = by_strength(file, (1.0,))
    with placed(file, model):
        assert torch.equal(run(model, "sim:0"), plain)
        add_lora(model, "style", adapters())
        assert torch.equal(run(model, "sim:0"), with_adapter)
        remove_lora(model, "style")
        assert torch.equal(run(model, "sim:0"), plain)
        add_lora(model, "style", adapters())
        assert torch.equal(run(model, "sim:0"), with_adapter)
    model.to("cpu")
    assert torch.equal(run(model), with_adapter)


def test_a_second_adapter_joins_the_first_while_the_model_is_placed(sim: types.ModuleType, file: Path) -> None:
    model = loaded(file)
    add_lora(model, "style", adapters())
    unplaced = loaded(file)
    for name in ("style", "detail"):
        add_lora(unplaced, name, adapters())
    with placed(file, model):
        run(model, "sim:0")
        add_lora(model, "detail", adapters())
        assert torch.equal(run(model, "sim:0"), run(unplaced))
