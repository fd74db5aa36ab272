"""Patches of every kind that the host knows, drawn for the layers of a tiny model, as the files they come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Weights = Mapping[str, torch.Tensor]
Maker = Callable[[str, tuple[int, int], torch.Generator], dict[str, torch.Tensor]]


def _random(generator: torch.Generator, *shape: int, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * scale


def _lora(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.lora_up.weight": _random(generator, shape[0], 4),
        f"{layer}.lora_down.weight": _random(generator, 4, shape[1]),
        f"{layer}.alpha": torch.tensor(2.0),
    }


def _dora(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {**_lora(layer, shape, generator), f"{layer}.dora_scale": 1 + _random(generator, shape[0], 1)}


def _loha(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.hada_w1_a": _random(generator, shape[0], 2, scale=0.2),
        f"{layer}.hada_w1_b": _random(generator, 2, shape[1], scale=0.2),
        f"{layer}.hada_w2_a": _random(generator, shape[0], 2, scale=0.2),
        f"{layer}.hada_w2_b": _random(generator, 2, shape[1], scale=0.2),
    }


def _lokr(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.lokr_w1": _random(generator, 4, 4, scale=0.2),
        f"{layer}.lokr_w2": _random(generator, shape[0] // 4, shape[1] // 4, scale=0.2),
    }


def _glora(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.a1.weight": _random(generator, 4, shape[1]),
        f"{layer}.a2.weight": _random(generator, shape[1], 4),
        f"{layer}.b1.weight": _random(generator, 4, shape[1]),
        f"{layer}.b2.weight": _random(generator, shape[0], 4),
    }


def _oft(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {f"{layer}.oft_blocks": _random(generator, shape[0] // 8, 8, 8), f"{layer}.alpha": torch.tensor(0.5)}


def _boft(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {f"{layer}.oft_blocks": _random(generator, 2, shape[0] // 8, 8, 8), f"{layer}.alpha": torch.tensor(0.5)}


def _diff(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {f"{layer}.diff": _random(generator, *shape)}


def _set(layer: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {f"{layer}.set_weight": _random(generator, *shape)}


WEIGHT_KINDS: Mapping[str, Maker] = {
    "lora": _lora,
    "dora": _dora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "oft": _oft,
    "boft": _boft,
    "diff": _diff,
    "set": _set,
}
"""Changes of a weight by the name of their kind."""


def patch_file(weights: Weights, kinds: Mapping[str, str], *, biases: bool, vectors: bool, seed: int) -> dict[str, Any]:
    """A file of changes.

    Args:
        weights: of the model, by name.
        kinds: kind of change by layer.
        biases: whether these layers' biases change too.
        vectors: whether the one-dimensional weights (of norms) change.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    file: dict[str, torch.Tensor] = {}
    for layer, kind in kinds.items():
        shape = weights[f"{layer}.weight"].shape
        file |= WEIGHT_KINDS[kind](f"diffusion_model.{layer}", (shape[0], shape[1]), generator)
        if biases and f"{layer}.bias" in weights:
            file[f"diffusion_model.{layer}.diff_b"] = _random(generator, shape[0])
    for name, tensor in weights.items():
        if vectors and tensor.ndim == 1 and name.endswith(".weight"):
            file[f"diffusion_model.{name.removesuffix('.weight')}.w_norm"] = _random(generator, len(tensor))
    return file
