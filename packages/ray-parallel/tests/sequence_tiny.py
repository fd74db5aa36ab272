"""Tiny models for the parity suite: seeded weights, seeded inputs, and how far two results are apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

torch.set_num_threads(1)  # ranks are threads or processes here; more threads inside each would fight for the cores

Built = tuple[nn.Module, dict[str, Any]]
"""A model and the keyword arguments of one forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model with one input: something that a plan must get right.

    Attributes:
        name: what is special about it, after the architecture ("wan: 45 tokens, 3 heads").
        build: makes model and arguments, the same ones each time.
    """

    name: str
    build: Callable[[], Built]

    @property
    def architecture(self) -> str:
        """The part of the name before the colon."""
        return self.name.partition(":")[0]


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Normally distributed numbers, the same ones for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def uniform(*shape: int, seed: int = 1) -> Tensor:
    """Numbers in [0, 1), the same ones for the same shape and seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pictures(count: int, *shape: int) -> list[Tensor]:
    """So many references of one shape, each another one."""
    return [normal(*shape, seed=9 + index) for index in range(count)]


def residuals(tokens: int, width: int, *places: int | None, batch: int = 1) -> list[Tensor | None]:
    """What a ControlNet adds after each block: the seed of it, or None for a block after which nothing is added."""
    return [None if seed is None else normal(batch, tokens, width, seed=seed) for seed in places]


def text_mask(shown: int, tokens: int) -> Tensor:
    """A mask that shows the first tokens of a text, [1, tokens]."""
    return (torch.arange(tokens) < shown).long()[None]


def qwen_sizes(heads: int) -> dict[str, Any]:
    """Sizes of Qwen-Image, which both hosts call by the same names."""
    return {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": heads,
        "joint_attention_dim": 20,
        "axes_dims_rope": (4, 6, 6),
    }


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter of `model` a value of healthy size, in place: no zero-initialised gate hides an error.

    Tables of positions, which the host leaves uninitialised until a checkpoint is loaded, get values too.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            fan_in = parameter.shape[-1] if parameter.ndim == 2 else parameter[0].numel()
            parameter.data = draw * (0.7 / math.sqrt(fan_in))
        elif name.endswith("weight") or "scale" in name:
            parameter.data = 1 + 0.1 * draw
        else:
            parameter.data = 0.1 * draw
        parameter.requires_grad_(False)
    for name, buffer in model.named_buffers():
        if name.endswith("pos_embed"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def sharing_copy(model: nn.Module) -> nn.Module:
    """The same model with its own modules and hooks, on the same weights: one for each rank that is a thread."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def cloned(value: Any) -> Any:
    """`value` with every tensor copied: models write into what they are given."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: cloned(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cloned(part) for part in value)
    return value


def flat(result: Any) -> Tensor:
    """Everything that a model returned, as one row of numbers."""
    if isinstance(result, Tensor):
        return result.float().flatten()
    return torch.cat([flat(part) for part in result])


def difference(result: Tensor, reference: Tensor) -> float:
    """Largest difference, relative to the largest value of the reference."""
    return ((result - reference).abs().max() / reference.abs().max()).item()


def mix_tokens(state: dict[str, Any]) -> dict[str, Any]:
    """A patch of the host whose result depends on the order of all image tokens; the text is left as it is."""
    image = state["img"]
    mixed = image + 0.3 * image.roll(7, 1) * image.mean(1, keepdim=True)
    return {name: mixed if name == "img" else value for name, value in state.items()}


def first_of_each(cases: Iterable[Case]) -> list[Case]:
    """The first case of every architecture."""
    chosen: dict[str, Case] = {}
    for case in cases:
        chosen.setdefault(case.architecture, case)
    return list(chosen.values())
