"""The dry mode: shapes, bytes, links and order of a model that no test machine could hold."""

from __future__ import annotations

import os
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

GIB = 1 << 30
WIDTH, HEADS = 3072, 24


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")

first_operator_is_slow = pytest.mark.slow
"""torch imports its compiler when the first operator of a process runs on shapes alone, which takes 6 to 10 s."""


class Block(nn.Module):
    """A single-stream block as wide as in a diffusion transformer of 12 billion parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        self.into, self.out = nn.Linear(WIDTH, 7 * WIDTH), nn.Linear(5 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(F.silu(vector))[:, None].chunk(3, -1)
        qkv, mlp = self.into(self.norm(x) * (1 + scale) + shift).split([3 * WIDTH, 4 * WIDTH], -1)
        query, key, value = qkv.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        residual: torch.Tensor = gate * self.out(torch.cat([y, F.gelu(mlp)], -1))
        return x + residual


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def built(homes: list[str]) -> list[Block]:
    """Make a block for each home, without giving any of them a value."""
    with torch.device("meta"):
        blocks = [Block().to(torch.bfloat16).requires_grad_(False) for _ in homes]
    for block, home in zip(blocks, homes, strict=True):
        block.to_empty(device=home)
        if home == "cpu":
            for p in block.parameters():
                p.data = torch.empty(p.shape, dtype=p.dtype, pin_memory=True)
    return blocks


@torch.inference_mode()
def streamed(blocks: list[Block], tokens: int) -> torch.Tensor:
    main, side = torch.accelerator.current_stream(0), torch.Stream(device="sim:0")
    x = torch.empty(1, tokens, WIDTH, dtype=torch.bfloat16, device="sim:0")
    vector = torch.empty(1, WIDTH, dtype=torch.bfloat16, device="sim:0")
    for block in blocks:
        with side:
            weights = {name: p.to("sim:0", non_blocking=True) for name, p in block.named_parameters()}
        main.wait_stream(side)
        x = torch.func.functional_call(block, weights, (x, vector))
        for weight in weights.values():
            weight.record_stream(main)
    return x


def run_dry(sim: types.ModuleType, homes: list[str]) -> int:
    """Stream a model of many GiB on devices of 24; return its bytes."""
    sim.config(dry=True, poison=False)
    for index in range(4):
        sim.set_capacity(index, 24 * GIB)
    before = resident_bytes()
    blocks = built(homes)
    block_bytes = sum(p.nbytes for p in blocks[0].parameters())
    sim.reset()
    y = streamed(blocks, tokens=4096)
    assert (y.shape, y.dtype, str(y.device)) == ((1, 4096, WIDTH), torch.bfloat16, "sim:0")
    assert resident_bytes() - before < GIB // 4, "nothing may be written into memory that is only counted"
    carried = {(link.src, link.kind): link.bytes for link in sim.links()}
    expected = {("host", "async"): homes.count("cpu"), ("sim:1", "d2d"): homes.count("sim:1")}
    assert carried == {link: count * block_bytes for link, count in expected.items()}
    assert sim.pinned_bytes() >= homes.count("cpu") * block_bytes
    return block_bytes * len(homes)


@linux
def test_bytes_that_are_only_counted_are_never_written(sim: types.ModuleType) -> None:
    sim.config(dry=True)
    sim.set_capacity(0, 24 * GIB)
    before = resident_bytes()
    source = torch.empty(16 * GIB, dtype=torch.uint8, pin_memory=True)
    fetched = source.to("sim:0", non_blocking=True)
    torch.accelerator.synchronize(0)
    assert (fetched.nbytes, sim.mem(0).used, sim.pinned_bytes() >= 16 * GIB) == (16 * GIB, 16 * GIB, True)
    assert resident_bytes() - before < GIB // 8


@first_operator_is_slow
@linux
def test_a_model_larger_than_any_device_runs_without_memory(sim: types.ModuleType) -> None:
    assert run_dry(sim, ["cpu", "sim:1"] * 45) > 18 * GIB


@first_operator_is_slow
def test_dry_devices_are_as_strict(sim: types.ModuleType) -> None:
    sim.config(dry=True)
    a, weight = torch.empty(4, 4, device="sim:0"), torch.empty(4, 4).pin_memory()
    with pytest.raises(RuntimeError, match="same device"):
        a @ torch.empty(4, 4, device="sim:1")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(GIB, device="sim:0")
    with torch.Stream(device="sim:0"):
        fetched = weight.to("sim:0", non_blocking=True)
    with pytest.raises(RuntimeError, match="simdev race"):
        a @ fetched
    assert len(sim.take_violations()) == 1
    torch.accelerator.synchronize(0)


@first_operator_is_slow
def test_dry_types_are_promoted_as_ever(sim: types.ModuleType) -> None:
    whole, half = torch.ones(4, dtype=torch.int64, device="sim:0"), torch.ones(4, dtype=torch.bfloat16, device="sim:0")
    expected = [(whole + 0.5).dtype, (half * torch.tensor(2.0)).dtype, (half + whole).dtype, (whole > 1).dtype]
    sim.config(dry=True)
    dry = [(whole + 0.5).dtype, (half * torch.tensor(2.0)).dtype, (half + whole).dtype, (whole > 1).dtype]
    assert dry == expected == [torch.float32, torch.bfloat16, torch.bfloat16, torch.bool]


@first_operator_is_slow
def test_a_dry_operator_counts_its_result(sim: types.ModuleType) -> None:
    sim.config(dry=True)
    a = torch.empty(1000, 1000, device="sim:0")
    used = sim.mem(0).used
    b = a @ a
    assert sim.mem(0).used == 2 * used
    assert b.view(-1)[1:].untyped_storage().nbytes() == b.nbytes
    a.add_(b)
    assert sim.mem(0).used == 2 * used


@first_operator_is_slow
def test_random_numbers_and_values_are_answered_in_dry_mode(sim: types.ModuleType) -> None:
    sim.config(dry=True)
    assert torch.randn(8, device="sim:0", generator=torch.Generator(device="sim:0")).shape == (8,)
    t = torch.empty(8, device="sim:0")
    assert isinstance(t.sum().item(), float)
    assert t[t > 0].dim() == 1
    assert t.nonzero().shape[1] == 1
    assert t[torch.tensor([0, 1, 1])].shape == (3,)


@first_operator_is_slow
def test_values_are_real_again_afterwards(sim: types.ModuleType) -> None:
    sim.config(dry=True)
    torch.ones(4, device="sim:0") + 1
    sim.config(dry=False)
    assert (torch.ones(4, device="sim:0") + 1).tolist() == [2.0] * 4
