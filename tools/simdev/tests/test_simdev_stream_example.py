"""The example the devices were made for: a model spread over three devices and pinned host memory, streamed to one."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, BLOCKS = 64, 4, 8
HOMES = ("sim:0", "sim:0", "sim:1", "sim:1", "sim:1", "sim:2", "sim:2", "cpu")
COMPUTE = "sim:0"


class Block(nn.Module):
    """One transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        y: torch.Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + y


def size_bytes(block: nn.Module) -> int:
    return sum(p.nbytes for p in block.parameters())


def charged_bytes(block: nn.Module) -> int:
    """Return what the tensors of a block take on a device, each rounded up."""
    return sum(-(-p.nbytes // 512) * 512 for p in block.parameters())


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(BLOCKS))).eval().requires_grad_(False)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(1, 16, WIDTH, generator=torch.Generator().manual_seed(1))


def spread(model: nn.Sequential) -> nn.Sequential:
    for block, home in zip(model, HOMES, strict=True):
        block.to(home)
        if home == "cpu":
            for p in block.parameters():
                p.data = p.data.pin_memory()
    return model


@torch.inference_mode()
def streamed(model: nn.Sequential, x: torch.Tensor, *, wait: bool = True, keep: bool = True) -> torch.Tensor:
    """Run on the compute device, each block's weights brought one block ahead on a stream of their own."""
    main, side = torch.accelerator.current_stream(0), torch.Stream(device=COMPUTE)
    ready: list[tuple[dict[str, torch.Tensor], torch.Event]] = []

    def bring(index: int) -> None:
        if index < BLOCKS:
            with side:
                weights = {name: p.to(COMPUTE, non_blocking=True) for name, p in model[index].named_parameters()}
                ready.append((weights, side.record_event()))

    bring(0)
    for index, block in enumerate(model):
        bring(index + 1)
        weights, event = ready.pop(0)
        if wait:
            main.wait_event(event)
        x = torch.func.functional_call(block, weights, (x,))
        if keep:
            for weight in weights.values():
                weight.record_stream(main)
    return x


def test_the_result_is_the_cpus_to_the_last_bit(sim: types.ModuleType, model: nn.Sequential, x: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = model(x)
    assert torch.equal(streamed(spread(model), x.to(COMPUTE)).cpu(), expected)


def test_each_link_carries_the_blocks_behind_it_and_nothing_else(
    sim: types.ModuleType, model: nn.Sequential, x: torch.Tensor
) -> None:
    block = size_bytes(model[0])
    spread(model)
    x = x.to(COMPUTE)
    sim.reset()
    streamed(model, x)
    assert {(link.src, link.dst, link.kind): link.bytes for link in sim.links()} == {
        ("sim:1", "sim:0", "d2d"): 3 * block,
        ("sim:2", "sim:0", "d2d"): 2 * block,
        ("host", "sim:0", "async"): block,
    }
    assert sim.counters().host_syncs == 0


def test_each_device_holds_its_blocks(sim: types.ModuleType, model: nn.Sequential) -> None:
    block = charged_bytes(model[0])
    spread(model)
    assert [sim.mem(index).used for index in range(4)] == [2 * block, 3 * block, 2 * block, 0]
    assert sim.pinned_bytes() == block


def test_a_forgotten_move_raises(sim: types.ModuleType, model: nn.Sequential, x: torch.Tensor) -> None:
    spread(model)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"two devices, sim:0 .* and sim:1"):
        model(x.to(COMPUTE))


def test_a_forgotten_wait_is_reported_and_poisons_the_result(
    sim: types.ModuleType, model: nn.Sequential, x: torch.Tensor
) -> None:
    sim.config(race="record")
    result = streamed(spread(model), x.to(COMPUTE), wait=False).cpu()
    assert any("copy_ on stream" in violation for violation in sim.take_violations())
    assert result.isnan().all()


def test_a_forgotten_record_stream_is_reported(sim: types.ModuleType, model: nn.Sequential, x: torch.Tensor) -> None:
    sim.config(race="record")
    streamed(spread(model), x.to(COMPUTE), keep=False)
    assert all("record_stream" in violation for violation in sim.violations())
    assert sim.take_violations()


def test_a_device_too_small_for_two_blocks_in_flight_refuses(
    sim: types.ModuleType, model: nn.Sequential, x: torch.Tensor
) -> None:
    spread(model)
    x = x.to(COMPUTE)
    sim.set_capacity(0, sim.mem(0).used + size_bytes(model[0]) + 4096)
    with pytest.raises(torch.OutOfMemoryError):
        streamed(model, x)
    assert sim.mem(0).ooms == 1
