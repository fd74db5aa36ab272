"""Every case of the parity suite, of both hosts, as parameters of tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import sequence_comfy_image
import sequence_comfy_video
import sequence_host
from sequence_tiny import Case, first_of_each

HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
if HAS_DIFFUSERS:
    import sequence_diffusers

COMFYUI: tuple[Case, ...] = (*sequence_comfy_image.CASES, *sequence_comfy_video.CASES)
DIFFUSERS: tuple[Case, ...] = sequence_diffusers.CASES if HAS_DIFFUSERS else ()

ON_COMFYUI = (pytest.mark.host, pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING))
ON_DIFFUSERS = (pytest.mark.skipif(not HAS_DIFFUSERS, reason="diffusers is not installed"),)


def every_case() -> list[Any]:
    """All cases, those of ComfyUI marked as needing a checkout."""
    return [*_parameters(DIFFUSERS, "diffusers", ON_DIFFUSERS), *_parameters(COMFYUI, "comfyui", ON_COMFYUI)]


def every_architecture() -> list[Any]:
    """The first case of every architecture."""
    first = (first_of_each(DIFFUSERS), first_of_each(COMFYUI))
    return [*_parameters(first[0], "diffusers", ON_DIFFUSERS), *_parameters(first[1], "comfyui", ON_COMFYUI)]


def both_hosts() -> list[Any]:
    """All cases of each host, together."""
    return [
        pytest.param(DIFFUSERS, id="diffusers", marks=ON_DIFFUSERS),
        pytest.param(COMFYUI, id="comfyui", marks=ON_COMFYUI),
    ]


def by_plan() -> list[Any]:
    """Cases whose models share plans, together; ComfyUI's are many and take their time."""
    alone = [
        pytest.param([case for case in DIFFUSERS if case.architecture == first.architecture], id=first.architecture)
        for first in first_of_each(DIFFUSERS)
    ]
    return [*alone, pytest.param(COMFYUI, id="comfyui", marks=(*ON_COMFYUI, pytest.mark.slow))]


def _parameters(cases: Iterable[Case], host: str, marks: Sequence[pytest.MarkDecorator]) -> list[Any]:
    return [pytest.param(case, id=f"{host}, {case.name}", marks=marks) for case in cases]
