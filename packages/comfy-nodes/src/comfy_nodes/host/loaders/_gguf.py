"""Loaders of GGUF files: the same as those of safetensors, but that weights stay packed wherever they live."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.sd
import torch

from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host._request import Loaded, PlacementRequest
from comfy_nodes.host.app import _compat
from comfy_nodes.host.loaders._contents import require_packed_model, require_text_encoder
from comfy_nodes.host.loaders._models import DIFFUSION_MODEL
from comfy_nodes.host.packed._gguf_dtypes import packed_encoder_dtype, packed_model_dtype
from comfy_nodes.host.packed._gguf_operations import operations
from comfy_nodes.host.placing._distribute import distribute
from comfy_nodes.host.placing._headers import GGUF_SUFFIX, ModelHeader, file_error, read_model_header
from comfy_nodes.host.placing._patcher import PlacedPatcher
from comfy_nodes.host.placing._prepare import CPU, prepare
from gguf_loader import GgufError, get_gguf_metadata, load_gguf, load_text_encoder, rebuild_tokenizer

_log = logging.getLogger(__name__)

_TYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "target": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_TOKENIZERS = {"t5": "spiece_model", "mistral": "tekken_model", "gemma2": "spiece_model", "gemma3": "spiece_model"}
"""Components whose tokenizer the host reads from the state dict, and the key it reads."""


def load_gguf_diffusion_model(
    path: str | Path,
    request: PlacementRequest,
    *,
    dequant_dtype: str = "default",
    patch_dtype: str = "default",
    patch_on_device: bool = False,
) -> Loaded[Any]:
    """Load a quantised diffusion model; its weights stay packed, on the compute device and on donors.

    Args:
        path: of the GGUF file.
        request: where it computes and where its bytes live.
        dequant_dtype: ``"default"`` and ``"target"`` round weights once, to the type they are computed in; another type
            is rounded to before.
        patch_dtype: type in which LoRA is added to dequantised weights; ``"default"`` is the host's choice,
            ``"target"`` the type of computation.
        patch_on_device: accepted for old workflows: patches are always computed where the model computes.

    Raises:
        HostError: the file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    for name, value in (("dequant_dtype", dequant_dtype), ("patch_dtype", patch_dtype)):
        if value not in _TYPES:
            raise ModelFileError(path, f"unknown {name} {value!r}", f"use one of {', '.join(_TYPES)}")
    prepared = prepare([path], request, prefix=None, check=require_packed_model)
    patcher = _load(prepared.headers[0], prepared.options, dequant_dtype)
    model, report = distribute(PlacedPatcher.adopt(patcher), prepared, prefix=DIFFUSION_MODEL)
    model.lazy_patch_dtype = model.model.get_dtype_inference() if patch_dtype == "target" else _TYPES[patch_dtype]
    return Loaded(value=model, reports=(report,))


def load_gguf_text_encoders(
    paths: Sequence[str | Path],
    request: PlacementRequest,
    *,
    clip_type: str = "stable_diffusion",
    embedding_directory: Sequence[str] | None = None,
) -> Loaded[Any]:
    """Load one to four text encoders, GGUF and others mixed, as one CLIP.

    Args:
        paths: of the files, in the order of the loader's inputs.
        request: where they compute and where their bytes live, all together.
        clip_type: the core loader's `type`.
        embedding_directory: folders of textual inversions, from the host.

    Raises:
        HostError: a file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    prepared = prepare(paths, request, check=require_text_encoder)
    weights = [_text_encoder(path) for path in paths]
    kind = getattr(comfy.sd.CLIPType, clip_type.upper(), comfy.sd.CLIPType.STABLE_DIFFUSION)
    load = comfy.sd.load_text_encoder_state_dicts
    clip = load(
        state_dicts=weights,
        embedding_directory=embedding_directory,
        clip_type=kind,
        model_options={
            **prepared.options,
            **packed_encoder_dtype(),
            "custom_operations": operations(),
            "initial_device": CPU,
        },
        **_compat.classic(load),
    )
    clip.patcher, report = distribute(PlacedPatcher.adopt(clip.patcher), prepared)
    return Loaded(value=clip, reports=(report,))


def reload_gguf(
    path: str, options: dict[str, Any], dequant_dtype: str = "default", disable_dynamic: bool = True
) -> Any:
    """A fresh copy of a quantised diffusion model, classic; also for the host's clones on other devices.

    Raises:
        ModelFileError: the file is malformed, or no diffusion model that the host knows.
    """
    return _load(read_model_header(path), options, dequant_dtype)


def _load(header: ModelHeader, options: dict[str, Any], dequant_dtype: str) -> Any:
    path = str(header.path)
    try:
        checkpoint = load_gguf(path, prefix=header.prefix)
    except GgufError as error:
        raise file_error(path, error) from error
    load = comfy.sd.load_diffusion_model_state_dict
    metadata = get_gguf_metadata(checkpoint.header)
    dtype = packed_model_dtype(checkpoint.state_dict, metadata, options.get("load_device"))
    patcher = load(
        checkpoint.state_dict,
        model_options={**options, **dtype, "custom_operations": operations(_TYPES[dequant_dtype])},
        **_compat.classic(load),
        **_compat.with_metadata(load, metadata),
    )
    if patcher is None:
        name = checkpoint.header.architecture
        raise ModelFileError(
            path,
            f"the host does not know its architecture ({name})",
            "choose a diffusion model; text encoders have loaders of their own",
        )
    patcher.cached_patcher_init = (reload_gguf, (path, options, dequant_dtype))
    return _compat.aim(patcher, options)


def _text_encoder(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights of one text encoder under the names that the host detects it by."""
    if Path(path).suffix.lower() != GGUF_SUFFIX:
        weights, _ = _compat.read_torch_file(str(path))
        if any(name.endswith(("scaled_fp8", ".comfy_quant")) for name in weights):
            raise ModelFileError(
                path,
                "it is quantised in another way, and one text encoder has one way",
                "load it with the plain CLIP node, or take an unquantised file beside the GGUF one",
            )
        return weights
    try:
        encoder = load_text_encoder(path)
        key = _TOKENIZERS.get(encoder.component)
        weights = dict(encoder.state_dict)
        if key is not None and encoder.header.metadata.get("tokenizer.ggml.model") is not None:
            weights[key] = torch.frombuffer(bytearray(rebuild_tokenizer(encoder.header).data), dtype=torch.uint8)
    except GgufError as error:
        raise file_error(path, error) from error
    return weights
