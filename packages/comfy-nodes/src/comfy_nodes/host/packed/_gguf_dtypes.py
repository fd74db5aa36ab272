"""Number formats of models with packed weights where ComfyUI was started with a format for dense ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import comfy.model_detection
import comfy.model_management as management
import torch

from comfy_nodes.host.app import _compat

_log = logging.getLogger(__name__)

_COMPUTED = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""Formats that packed weights can be computed in."""


def packed_model_dtype(
    weights: Mapping[str, torch.Tensor], metadata: Any, device: torch.device | None
) -> dict[str, torch.dtype]:
    """The host's `dtype` option for a packed diffusion model.

    Empty where the host's choice can be computed in. A start flag such as ``--fp8_e4m3fn-unet`` or ``--fp64-unet``
    asks to store dense weights in another format; the model is loaded as without the flag then.

    Args:
        weights: of the model, under the names that the host detects it by.
        metadata: of the file.
        device: that computes; None for the host's default.
    """
    flagged = management.unet_dtype(supported_dtypes=[])
    if flagged in _COMPUTED:
        return {}
    _report("diffusion models", flagged)
    detect = comfy.model_detection.model_config_from_unet
    config = detect(weights, "", **_compat.with_metadata(detect, metadata))
    if config is None:
        return {}
    # Asked for weights of 8 bits, the host names the format that it would compute them in.
    target = device or management.get_torch_device()
    cast = management.unet_manual_cast(torch.float8_e4m3fn, target, list(config.supported_inference_dtypes))
    return {"dtype": cast or torch.float32}


def packed_encoder_dtype() -> dict[str, torch.dtype]:
    """The host's `dtype` option for packed text encoders: its default where a start flag names another format."""
    flagged = management.text_encoder_dtype()
    if flagged in _COMPUTED:
        return {}
    _report("text encoders", flagged)
    return {"dtype": torch.float16}


@cache
def _report(models: str, flagged: torch.dtype) -> None:
    """Log once that a start flag does not change packed weights."""
    name = str(flagged).removeprefix("torch.")
    _log.warning("ComfyUI was started with %s for %s: GGUF weights stay packed and ignore it", name, models)
