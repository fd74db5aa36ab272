"""A denoising loop in the manner of diffusers, which runs the same in one process and in each of several."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def flow_euler(
    model: nn.Module,
    step: Callable[..., None],
    *,
    latents: torch.Tensor,
    sigmas: Sequence[float],
    inputs: Mapping[str, Any],
    latents_name: str = "hidden_states",
    timestep_name: str = "timestep",
    timestep_scale: float = 1.0,
    previews: bool = False,
) -> torch.Tensor:
    """Denoise along a rectified flow with Euler steps (Liu et al., 2022), as Flux, Wan and most models since do.

    Args:
        model: predicts the velocity: a transformer of diffusers, or whatever takes its arguments by name and returns a
            tensor, or a tuple whose first entry is one.
        step: called as ``step(done, of, preview)`` after each step.
        latents: the noise to begin with, [B, ...].
        sigmas: noise levels from 1.0 down to 0.0; one step lies between two of them.
        inputs: everything else that the model is called with: texts, positions, guidance.
        latents_name: what the model calls the latents.
        timestep_name: what it calls the noise level, which it is given as [B].
        timestep_scale: what it multiplies the noise level with: 1 for Flux, 1000 for Wan.
        previews: hand the latents of every step to `step`.

    Returns:
        The latents at the last noise level, shaped as `latents`.
    """
    steps = len(sigmas) - 1
    for index, (now, then) in enumerate(itertools.pairwise(sigmas)):
        timestep = torch.full((latents.shape[0],), now * timestep_scale, device=latents.device, dtype=latents.dtype)
        predicted = model(**{latents_name: latents, timestep_name: timestep}, **inputs)
        velocity = predicted if isinstance(predicted, torch.Tensor) else predicted[0]
        latents = latents + (then - now) * velocity
        step(index + 1, steps, latents if previews else None)
    return latents
