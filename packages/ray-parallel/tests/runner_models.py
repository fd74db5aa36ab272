"""A small transformer of this package's tests, with its plan: for runs that need no other library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ray_parallel.sequence import Attn, Plan, Region, Seq

PLAN = Plan(
    regions=[
        Region(blocks="blocks", args={"x": Seq("v")}, whole=("shift",), out=Seq("v"), attn={"attn": Attn("v", "v")})
    ]
)
FORGETFUL = Plan(regions=[Region(blocks="blocks", args={"x": Seq("v")}, out=Seq("v"), attn={"attn": Attn("v", "v")})])
MISNAMED = Plan(
    regions=[
        Region(blocks="layers", args={"x": Seq("v")}, whole=("shift",), out=Seq("v"), attn={"attn": Attn("v", "v")})
    ]
)
NEARSIGHTED = Plan(
    regions=[Region(blocks="blocks", args={"x": Seq("v")}, whole=("shift",), out=Seq("v"), attn={"attn": Attn("v")})]
)
"""Tokens see those of their own rank only: all ranks agree on a wrong result."""
ELSEWHERE = "runner_models:"


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        result: torch.Tensor = self.out(mixed)
        return result


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(width), Attention(width, heads), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm(x) + shift)
        return x + torch.tanh(self.mlp(x))


class Transformer(nn.Module):
    """Two blocks; its waves are a buffer that no checkpoint holds."""

    waves: torch.Tensor

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.time = nn.Parameter(torch.ones(width))
        self.register_buffer("waves", torch.arange(width) / width, persistent=False)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        shift = (timestep[:, None, None] * self.time + self.waves).sin()
        for block in self.blocks:
            hidden_states = block(hidden_states, shift)
        return (hidden_states,)


class Unfilled(Transformer):
    """Leaves a buffer as it found the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.empty(3), persistent=False)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of `Transformer`, small enough that a few steps stay tame."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in Transformer().state_dict().items()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def alone() -> Transformer:
    """The model in this process."""
    model = Transformer()
    model.load_state_dict(weights())
    return model.eval().requires_grad_(False)


def noise(tokens: int = 13) -> torch.Tensor:
    return torch.randn(1, tokens, 24, generator=torch.Generator().manual_seed(1))


def killing_loop(model: nn.Module, step: Callable[..., None], *, latents: torch.Tensor, flag: str) -> torch.Tensor:
    """A loop in which worker 1 is killed in the middle of the second step, once: then the flag stands."""
    import os
    import signal
    from pathlib import Path

    import torch.distributed as dist

    for index in range(3):
        first_time = not Path(flag).exists()
        dist.barrier()
        if index == 1 and first_time and dist.get_rank() == 1:
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        latents = model(latents, torch.ones(1))[0]
        step(index + 1, 3)
    return latents


def drifting_loop(model: nn.Module, step: Callable[..., None], *, latents: torch.Tensor) -> torch.Tensor:
    """A loop that draws its own random numbers, which are not those of the other workers."""
    import torch.distributed as dist

    torch.manual_seed(dist.get_rank())
    step(1, 1)
    return latents + torch.randn(latents.shape)
