"""A small transformer for the examples, and its sequence plan: all that ray-parallel has to know of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ray_parallel.sequence import Attn, Plan, Region, Seq


class Block(nn.Module):
    """Attention and a perceptron; only attention mixes tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Map `[batch, tokens, width]` to the same shape."""
        q, k, v = self.qkv(x_BTC).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTC = x_BTC + self.out(mixed)
        return torch.add(x_BTC, self.mlp(x_BTC))


class Transformer(nn.Module):
    """A list of blocks."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """Map `[batch, tokens, width]` to the same shape; samplers pass the noise level, which is unused here."""
        x_BTC = hidden_states
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return x_BTC


PLAN = Plan(
    regions=[
        Region(
            blocks="blocks",  # the module list whose blocks work on a part of the tokens each
            args={"x_BTC": Seq("tokens")},  # what is cut: this argument, along its tokens
            out=Seq("tokens"),  # what a block returns is cut in the same way
            attn={"": Attn("tokens", "tokens")},  # attention needs all tokens: ranks exchange them
        )
    ]
)
