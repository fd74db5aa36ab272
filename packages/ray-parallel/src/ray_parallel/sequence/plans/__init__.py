"""The plans that are known, each under twenty lines of data: for ComfyUI's classes and for those of diffusers.

Neither host is imported. A model is recognised by its class and by what its blocks take; one that is unknown, or has
changed since its plan was written, is refused.

May import: plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from ray_parallel.sequence.plan._registry import Entry, RefusedModelError, find, name_of
from ray_parallel.sequence.plans._comfyui import COMFYUI, COMFYUI_REFUSED
from ray_parallel.sequence.plans._diffusers import DIFFUSERS, DIFFUSERS_REFUSED

__all__ = ["ENTRIES", "REFUSED", "plan_for"]

ENTRIES: tuple[Entry, ...] = (*COMFYUI, *DIFFUSERS)
"""Every known model with its plan; an entry of yours goes beside them into `find`."""

REFUSED: Mapping[str, str] = MappingProxyType(COMFYUI_REFUSED | DIFFUSERS_REFUSED)
"""Models that are known not to be exact when their tokens are cut -> what they do."""


def plan_for(model: nn.Module) -> Entry:
    """The plan of a model of ComfyUI or diffusers.

    Args:
        model: any instance; its weights do not matter.

    Returns:
        the entry, whose `plan` and `kernels` go to `parallelize`.

    Raises:
        RefusedModelError: the model is known, and cutting its tokens would not be exact.
        UnknownModelError: nothing is known about the model.
        ChangedModelError: its blocks take other arguments than when its plan was written.

    Examples:
        >>> plan_for(nn.Linear(2, 2))
        Traceback (most recent call last):
        ray_parallel.sequence.plan._registry.UnknownModelError: no plan is known for torch.nn.modules...
    """
    name = name_of(model)
    if name in REFUSED:
        raise RefusedModelError(name, REFUSED[name])
    return find(model, ENTRIES)
