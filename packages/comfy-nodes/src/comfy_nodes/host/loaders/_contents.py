"""What a file holds: refused before it is planned where it is not what its loader is for."""

from __future__ import annotations

import comfy.model_detection
import comfy.sd
import torch

from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host.placing._headers import ModelHeader, file_error
from gguf_loader import GgufError


def require_packed_model(header: ModelHeader) -> None:
    """Refuse a GGUF file of something else than a diffusion model.

    Raises:
        ModelFileError: it is a text encoder, a vision part or a LoRA.
    """
    if header.gguf is not None:
        try:
            header.gguf.require("diffusion model")
        except GgufError as error:
            raise file_error(header.path, error) from error


def require_text_encoder(header: ModelHeader) -> None:
    """Refuse a diffusion model in the place of a text encoder: the host would use nothing of it and encode noise.

    Raises:
        ModelFileError: the file is a diffusion model, also to the host's own detection, or a part of an encoder.
    """
    if header.gguf is not None:
        try:
            header.gguf.require("text encoder")
        except GgufError as error:
            raise file_error(header.path, error) from error
        return
    if header.is_packed:
        raise ModelFileError(header.path, "text encoders are not loaded packed", "run `torchspan unpack` on it first")
    shapes = {name: torch.empty(tuple(shape), device="meta") for name, (shape, _) in header.sizes.items()}
    if comfy.sd.detect_te_model(shapes) is not None:
        return
    if comfy.model_detection.model_config_from_unet(shapes, header.prefix) is not None:
        remedy = "choose the file of a text encoder; diffusion models have loaders of their own"
        raise ModelFileError(header.path, "it is a diffusion model, not a text encoder", remedy)
