"""The functions that callers of ComfyUI-GGUF's loader expect, with its names and arguments."""

from __future__ import annotations

from os import PathLike
from typing import TypedDict

import torch

from ._load import load_gguf
from .file._header import GgufHeader, read_header

DIFFUSION_PREFIX = "model.diffusion_model."
"""What single-file checkpoints put before the names of the diffusion model's tensors."""


class ExtraInfo(TypedDict):
    """What `gguf_sd_loader` returns beside the state dict."""

    arch_str: str | None
    metadata: dict[str, str]


def gguf_sd_loader(
    path: str | PathLike[str], handle_prefix: str | None = DIFFUSION_PREFIX, is_text_model: bool = False
) -> tuple[dict[str, torch.Tensor], ExtraInfo]:
    """Load a GGUF file for a host that expects ComfyUI-GGUF's loader: the thin face of `load_gguf`.

    The architecture's name is passed on and never judged: what a checkpoint is, its tensor names tell.

    Args:
        path: the file.
        handle_prefix: prefix of the diffusion model's tensors in single-file checkpoints; None keeps all names.
        is_text_model: whether the caller expects a text encoder or its vision projector. The names stay those of the
            file; `load_text_encoder` gives them back their originals.

    Returns:
        the state dict, and `arch_str` (`general.architecture`, or None) with `metadata` (every scalar as text).

    Raises:
        GgufError: as `load_gguf`.
        GgufKeyError: the tensors are not those of a diffusion model, or with `is_text_model` of a text encoder.
    """
    checkpoint = load_gguf(path, prefix=handle_prefix)
    header = checkpoint.header
    if is_text_model:
        header.require("text encoder", "vision part")
    else:
        header.require("diffusion model")
    return checkpoint.state_dict, ExtraInfo(arch_str=header.architecture, metadata=header.metadata.host_view())


def get_gguf_metadata(source: GgufHeader | str | PathLike[str], *, arrays: bool = False) -> dict[str, str]:
    """The metadata of a GGUF file as a safetensors header would hold it: text under every key.

    Strings are kept; numbers and bools become JSON text. `GgufHeader.metadata` has them typed.

    Args:
        source: a header that was read, or the path of a file.
        arrays: also read the arrays, as JSON lists.

    Raises:
        GgufError: as `read_header`.
    """
    header = source if isinstance(source, GgufHeader) else read_header(source)
    return header.metadata.host_view(arrays=arrays)
