"""Loaders of diffusion models, checkpoints and text encoders: the host's own, on the devices that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import torch

from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host._request import Checkpoint, Loaded, PlacementRequest
from comfy_nodes.host.app import _compat
from comfy_nodes.host.app._packed_files import read_packed
from comfy_nodes.host.loaders._contents import require_text_encoder
from comfy_nodes.host.loaders._parts import load_vae_file, place_vae
from comfy_nodes.host.packed._gguf_operations import operations
from comfy_nodes.host.placing._distribute import distribute
from comfy_nodes.host.placing._patcher import PlacedPatcher
from comfy_nodes.host.placing._prepare import CPU, Prepared, prepare, prepare_part

DIFFUSION_MODEL = "diffusion_model."
"""Where the host's models keep the network that is placed."""

_WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
_UNET_FILES = tuple(
    f"diffusion_pytorch_model{kind}" for kind in (".fp16.safetensors", ".safetensors", ".fp16.bin", ".bin")
)
_TEXT_FILES = ("model.fp16.safetensors", "model.safetensors", "pytorch_model.fp16.bin", "pytorch_model.bin")


def load_diffusion_model(path: str | Path, request: PlacementRequest, *, weight_dtype: str = "default") -> Loaded[Any]:
    """Load a diffusion model, as UNETLoader does.

    Args:
        path: of the file; a checkpoint serves, too. The linear weights of one that `torchspan pack` wrote stay packed.
        request: where it computes and where its bytes live.
        weight_dtype: one of the core loader's choices.

    Returns:
        The host's MODEL.

    Raises:
        HostError: the file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    if weight_dtype not in _WEIGHT_DTYPES:
        raise ModelFileError(path, f"unknown weight_dtype {weight_dtype!r}", f"use one of {', '.join(_WEIGHT_DTYPES)}")
    prepared = prepare([path], request, prefix=None, dtype=_WEIGHT_DTYPES[weight_dtype].get("dtype"))
    options = {**_WEIGHT_DTYPES[weight_dtype], **prepared.options}
    if any(header.is_packed for header in prepared.headers):
        patcher = PlacedPatcher.adopt(reload_packed(str(path), options))
    else:
        weights, metadata = _compat.read_torch_file(str(path))
        patcher = _diffusion_model(str(path), weights, metadata, options, is_classic=request.is_placed)
    model, report = distribute(patcher, prepared, prefix=DIFFUSION_MODEL)
    return Loaded(value=model, reports=(report,))


def load_checkpoint(
    path: str | Path,
    request: PlacementRequest,
    *,
    clip_request: PlacementRequest | None = None,
    vae_request: PlacementRequest | None = None,
    embedding_directory: Sequence[str] | None = None,
) -> Loaded[Checkpoint]:
    """Load diffusion model, text encoder and VAE from one file, read once, each with a separate placement.

    Args:
        path: of the file.
        request: for the diffusion model.
        clip_request: for the text encoder; on the same compute device, unplaced, where None.
        vae_request: for the VAE; the same.
        embedding_directory: folders of textual inversions, from the host.

    Raises:
        HostError: the file, a device or an allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: an allocation does not fit.
    """
    beside, name = PlacementRequest(compute_device=request.compute_device), Path(path).name
    prepared = prepare([path], request, subject=f"{name} (model)", prefix=None)
    encoder = prepare_part(prepared, clip_request or beside, subject=f"{name} (text encoder)")
    decoder = prepare_part(prepared, vae_request or beside, subject=f"{name} (VAE)")
    weights, metadata = _compat.read_torch_file(str(path))
    patcher = _diffusion_model(str(path), dict(weights), metadata, prepared.options, is_classic=request.is_placed)
    load = comfy.sd.load_state_dict_guess_config
    vae_device = decoder.options.get("load_device")
    te_options = _text_encoder_options(encoder)
    arguments = {"te_model_options": te_options, **_compat.with_metadata(load, metadata)}
    if encoder.request.is_placed or decoder.request.is_placed:
        arguments |= _compat.classic(load)
    _, clip, vae, _ = load(
        dict(weights),
        output_model=False,
        embedding_directory=embedding_directory,
        model_options={} if vae_device is None else {"load_device": vae_device},
        **arguments,
    )
    model, report = distribute(patcher, prepared, prefix=DIFFUSION_MODEL)
    reports = [report]
    if clip is not None:
        _remember(clip.patcher, "load_checkpoint_clip_patcher", (str(path), embedding_directory, {}, te_options))
        clip.patcher, report = distribute(clip.patcher, encoder)
        reports.append(report)
    if getattr(vae, "patcher", None) is not None:
        _remember(vae.patcher, "load_checkpoint_vae_patcher", (str(path), embedding_directory, {}, te_options))
        reports.append(place_vae(vae, decoder))
    return Loaded(value=Checkpoint(model=model, clip=clip, vae=vae), reports=tuple(reports))


def load_diffusers(
    folder: str | Path,
    request: PlacementRequest,
    *,
    clip_request: PlacementRequest | None = None,
    vae_request: PlacementRequest | None = None,
    embedding_directory: Sequence[str] | None = None,
) -> Loaded[Checkpoint]:
    """Load a folder in the layout of diffusers, as DiffusersLoader does.

    Args:
        folder: with ``unet``, ``vae``, ``text_encoder`` and perhaps ``text_encoder_2`` in it.
        request: for the diffusion model.
        clip_request: for the text encoders; on the same compute device, unplaced, where None.
        vae_request: for the VAE; the same.
        embedding_directory: folders of textual inversions, from the host.

    Raises:
        HostError: a file is missing or no good, or a device or an allocation; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: an allocation does not fit.
    """
    base = Path(folder)
    beside = PlacementRequest(compute_device=request.compute_device)
    clip_request, vae_request = clip_request or beside, vae_request or beside
    unet = _first(base / "unet", _UNET_FILES)
    vae_file = _first(base / "vae", _UNET_FILES)
    texts = [_first(base / "text_encoder", _TEXT_FILES)]
    if (base / "text_encoder_2").is_dir():
        texts.append(_first(base / "text_encoder_2", _TEXT_FILES))
    for paths, asked in (([unet], request), (texts, clip_request), ([vae_file], vae_request)):
        prepare(paths, replace(asked, allocation=None))
    model = load_diffusion_model(unet, request)
    clip = load_text_encoders(texts, clip_request, embedding_directory=embedding_directory)
    vae = load_vae_file(vae_file, vae_request)
    return Loaded(
        value=Checkpoint(model=model.value, clip=clip.value, vae=vae.value),
        reports=(*model.reports, *clip.reports, *vae.reports),
    )


def load_text_encoders(
    paths: Sequence[str | Path],
    request: PlacementRequest,
    *,
    clip_type: str = "stable_diffusion",
    embedding_directory: Sequence[str] | None = None,
) -> Loaded[Any]:
    """Load one to four text encoders as one CLIP, as the core loaders do.

    Args:
        paths: of the files, in the order of the core loader's inputs.
        request: where they compute and where their bytes live, all together.
        clip_type: the core loader's `type`.
        embedding_directory: folders of textual inversions, from the host.

    Raises:
        HostError: a file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    prepared = prepare(paths, request, check=require_text_encoder)
    kind = getattr(comfy.sd.CLIPType, clip_type.upper(), comfy.sd.CLIPType.STABLE_DIFFUSION)
    files = [str(path) for path in paths]
    options = _text_encoder_options(prepared)
    arguments = _compat.classic(comfy.sd.load_clip) if request.is_placed else {}
    clip = comfy.sd.load_clip(
        ckpt_paths=files, embedding_directory=embedding_directory, clip_type=kind, model_options=options, **arguments
    )
    clip.patcher, report = distribute(clip.patcher, prepared)
    return Loaded(value=clip, reports=(report,))


def reload_diffusion_model(path: str, options: dict[str, Any], disable_dynamic: bool = True) -> Any:
    """A fresh copy of a diffusion model, for the host's clones on other devices.

    Args:
        path: of its file.
        options: the host's model options.
        disable_dynamic: asked by the host; a copy that donors serve is classic in any case.
    """
    weights, metadata = _compat.read_torch_file(path)
    return _diffusion_model(path, weights, metadata, options, is_classic=True)


def reload_packed(path: str, options: dict[str, Any], disable_dynamic: bool = True) -> Any:
    """A fresh copy of a diffusion model whose file is packed, classic; also for the host's clones on other devices.

    Raises:
        ModelFileError: the file is damaged, or no diffusion model that the host knows.
    """
    weights, metadata = read_packed(path)
    patcher = _diffusion_model(path, weights, metadata, {**options, "custom_operations": operations()}, is_classic=True)
    patcher.cached_patcher_init = (reload_packed, (path, options))
    return patcher


def _diffusion_model(
    path: str, weights: dict[str, torch.Tensor], metadata: Any, options: dict[str, Any], *, is_classic: bool
) -> Any:
    load = comfy.sd.load_diffusion_model_state_dict
    arguments = {**(_compat.classic(load) if is_classic else {}), **_compat.with_metadata(load, metadata)}
    patcher = load(weights, model_options=options, **arguments)
    if patcher is None:
        raise ModelFileError(
            path, "the host does not know its architecture", "choose the file of a diffusion model (not of a LoRA)"
        )
    factory = reload_diffusion_model if is_classic else comfy.sd.load_diffusion_model
    patcher.cached_patcher_init = (factory, (path, options))
    return _compat.aim(patcher, options)


def _text_encoder_options(prepared: Prepared) -> dict[str, Any]:
    return {**prepared.options, "initial_device": CPU} if prepared.request.is_placed else prepared.options


def _remember(patcher: Any, factory: str, arguments: tuple[Any, ...]) -> None:
    """Tell the host how to load the same part again, where it has a function for that."""
    if hasattr(comfy.sd, factory):
        patcher.cached_patcher_init = (getattr(comfy.sd, factory), arguments)


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelFileError(folder, f"it has none of {', '.join(names)}", "choose a complete folder")
