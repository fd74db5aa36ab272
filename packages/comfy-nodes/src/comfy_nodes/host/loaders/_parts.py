"""Loaders of the models beside the diffusion model: VAE, CLIP vision, ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.model_management as management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from comfy_nodes.host._errors import ModelFileError, PlacementRefusedError
from comfy_nodes.host._request import Loaded, PlacementReport, PlacementRequest
from comfy_nodes.host.app import _compat
from comfy_nodes.host.placing._distribute import distribute
from comfy_nodes.host.placing._prepare import CPU, Prepared, prepare


def load_vae(vae_name: str, request: PlacementRequest) -> Loaded[Any]:
    """Load a VAE by the name that the core loader offers: a file, ``pixel_space``, or a small one such as ``taesd``.

    Raises:
        HostError: the file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    import folder_paths
    from nodes import VAELoader

    if vae_name == "pixel_space":
        return _vae({"pixel_space_vae": torch.tensor(1.0)}, None, prepare([], request, subject=vae_name))
    if vae_name in getattr(VAELoader, "image_taes", ("taesd", "taesdxl", "taesd3", "taef1")):
        # The only name whose weights do not say how many channels its latents have.
        metadata = {"tae_latent_channels": 128} if vae_name == "taef2" else None
        return _vae(VAELoader.load_taesd(vae_name), metadata, prepare([], request, subject=vae_name))
    is_approximate = Path(vae_name).stem in getattr(VAELoader, "video_taes", ())
    return load_vae_file(
        folder_paths.get_full_path_or_raise("vae_approx" if is_approximate else "vae", vae_name), request
    )


def load_vae_file(path: str | Path, request: PlacementRequest) -> Loaded[Any]:
    """Load a VAE from its file.

    Raises:
        HostError: the file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    prepared = prepare([path], request)
    weights, metadata = _compat.read_torch_file(str(path))
    loaded = _vae(weights, metadata, prepared)
    factory = getattr(comfy.sd, "load_vae_patcher", None)
    if factory is not None:
        loaded.value.patcher.cached_patcher_init = (factory, (str(path), metadata, None))
    return loaded


def place_vae(vae: Any, prepared: Prepared) -> PlacementReport:
    """Place a VAE that the host has just made."""
    patcher = _made_classic(vae.patcher, vae.vae_dtype) if prepared.request.is_placed else vae.patcher
    vae.patcher, report = distribute(patcher, prepared)
    return report


def load_clip_vision(path: str | Path, request: PlacementRequest) -> Loaded[Any]:
    """Load an image encoder, as CLIPVisionLoader does.

    Raises:
        HostError: the file, the device or the allocation is invalid; nothing was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    prepared = prepare([path], request)
    vision = comfy.clip_vision.load(str(path))
    if vision is None:
        raise ModelFileError(path, "the host finds no image encoder in it", "choose the file of a CLIP vision model")
    options = prepared.options
    if options:
        # The host offers no argument; image and weights are brought to the device that both of these name.
        vision.load_device = vision.patcher.load_device = options["load_device"]
    patcher = _made_classic(vision.patcher, vision.dtype) if request.is_placed else vision.patcher
    vision.patcher, report = distribute(patcher, prepared)
    return Loaded(value=vision, reports=(report,))


def load_controlnet(path: str | Path, request: PlacementRequest, *, model: Any = None) -> Loaded[Any]:
    """Load a ControlNet, as ControlNetLoader does, or DiffControlNetLoader where `model` is given.

    A ControlNet runs where the sampler's model runs, whatever device its weights are on. So its compute device is
    where its weights wait, and each layer brings its own over.

    Raises:
        HostError: the file, the device or the allocation is invalid, or the kind of control has no layers; nothing
            was placed.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    prepared = prepare([path], request)
    control = comfy.controlnet.load_controlnet(str(path), model)
    if control is None:
        raise ModelFileError(path, "the host finds no ControlNet in it", "choose the file of a ControlNet")
    subject = prepared.subject
    options = prepared.options
    patcher = getattr(control, "control_model_wrapped", None)
    as_the_host = not request.is_placed and options.get("load_device") in (None, management.get_torch_device())
    if not options or (patcher is None and as_the_host):
        return Loaded(value=control, reports=(PlacementReport(subject=subject, text=f"{subject}: loaded by the host"),))
    if patcher is None:
        kind = type(control).__name__
        raise PlacementRefusedError(
            subject, f"a {kind} has no weights that the host manages; it moves them itself", "use the core loader"
        )
    patcher = _made_classic(patcher, control.control_model.dtype)
    control.load_device = patcher.load_device = options["load_device"]
    for layer in control.control_model.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = True
    control.control_model_wrapped, report = distribute(patcher, prepared)
    return Loaded(value=control, reports=(report,))


def _vae(weights: dict[str, torch.Tensor], metadata: Any, prepared: Prepared) -> Loaded[Any]:
    device = prepared.options.get("load_device")
    vae = comfy.sd.VAE(sd=weights, device=device, **_compat.with_metadata(comfy.sd.VAE.__init__, metadata))
    if vae.first_stage_model is None:
        raise ModelFileError(prepared.subject, "the host finds no VAE in it", "choose the file of a VAE")
    vae.throw_exception_if_invalid()
    return Loaded(value=vae, reports=(place_vae(vae, prepared),))


def _made_classic(patcher: Any, dtype: torch.dtype) -> Any:
    """An ordinary patcher for a model that the host made for its dynamic VRAM, with weights of the type it computes in.

    The functions that make these models take no argument against it. Their weights are views of the file then, of the
    type they are stored in; they become memory of their own.
    """
    if not _compat.is_dynamic(patcher):
        return patcher
    patcher.model._apply(lambda tensor: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True))
    return ModelPatcher(patcher.model, load_device=patcher.load_device, offload_device=CPU)
