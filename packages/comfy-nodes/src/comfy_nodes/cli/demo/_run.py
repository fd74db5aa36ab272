"""What the demo measures: denoising runs, pass by pass."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from comfy_nodes.cli._output import dots
from comfy_nodes.cli.demo._model import DemoConfig, sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One denoising run.

    Attributes:
        latent: what came out, [1, channels, image_size, image_size].
        pass_seconds: duration of each step.
    """

    latent: torch.Tensor
    pass_seconds: tuple[float, ...]

    @property
    def steady_seconds(self) -> float:
        """A pass once things repeat: the median without the first, which meets cold caches and an unknown order."""
        return statistics.median(self.pass_seconds[1:] or self.pass_seconds)


def denoise(model: nn.Module, config: DemoConfig, *, steps: int, seed: int, title: str) -> Run:
    """Denoise one latent, print a dot a step and time every pass."""
    print_dot = dots(title)
    moments = [time.perf_counter()]

    def after_step(step: int) -> None:
        moments.append(time.perf_counter())
        print_dot(step)

    latent = sample(model, config, steps=steps, seed=seed, after_step=after_step)
    print(f" {moments[-1] - moments[0]:.2f} s")
    seconds = tuple(end - start for start, end in itertools.pairwise(moments))
    return Run(latent=latent, pass_seconds=seconds)


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest absolute difference of two latents; 0.0 only when every bit of every number agrees in value."""
    return (left - right).abs().max().item()


@contextmanager
def one_core_for_the_link() -> Iterator[None]:
    """Let torch compute on all cores but one, which carries the emulated copies as a copy engine would."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
