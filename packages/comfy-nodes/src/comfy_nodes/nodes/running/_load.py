"""From a loader's own inputs to the host adapter's function that loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from comfy_nodes import host
from comfy_nodes.host import Loaded, PlacementRequest
from comfy_nodes.host.app import folders
from comfy_nodes.nodes.table._loaders import DIFFUSION_FOLDERS, ENCODER_FOLDERS, Loader

Values = Mapping[str, Any]
Load = Callable[[Values, PlacementRequest], Loaded[Any]]


def run(loader: Loader, values: Values, request: PlacementRequest) -> Loaded[Any]:
    """Load with one loader.

    Args:
        loader: which.
        values: its own inputs by name.
        request: where the model computes and its bytes live.

    Raises:
        FileNotFoundError: a file is not in the host's folders.
        HostError: the file cannot be loaded, or not be placed as asked.
        alloc_spec.AllocSpecError: the allocation does not go with the model or this machine.
    """
    return function_of(loader)(values, request)


def function_of(loader: Loader) -> Load:
    """The function that loads with one loader."""
    return _LOADS[loader.name]


def _diffusion_model(values: Values, request: PlacementRequest) -> Loaded[Any]:
    path = folders.full_path(DIFFUSION_FOLDERS[0], values["unet_name"])
    return host.load_diffusion_model(path, request, weight_dtype=values.get("weight_dtype", "default"))


def _gguf_diffusion_model(values: Values, request: PlacementRequest) -> Loaded[Any]:
    path = folders.full_path(DIFFUSION_FOLDERS[0], values["unet_name"])
    names = ("dequant_dtype", "patch_dtype", "patch_on_device")
    return host.load_gguf_diffusion_model(path, request, **{name: values[name] for name in names if name in values})


def _encoder_paths(values: Values) -> list[str]:
    names = [values[name] for name in sorted(values) if name.startswith("clip_name")]
    return [folders.full_path(ENCODER_FOLDERS[0], name) for name in names]


def _encoder_options(values: Values) -> dict[str, Any]:
    kind = {"clip_type": values["type"]} if "type" in values else {}
    return {"embedding_directory": folders.embedding_directory(), **kind}


def _text_encoders(values: Values, request: PlacementRequest) -> Loaded[Any]:
    return host.load_text_encoders(_encoder_paths(values), request, **_encoder_options(values))


def _gguf_text_encoders(values: Values, request: PlacementRequest) -> Loaded[Any]:
    return host.load_gguf_text_encoders(_encoder_paths(values), request, **_encoder_options(values))


def _checkpoint(values: Values, request: PlacementRequest) -> Loaded[Any]:
    path = folders.full_path("checkpoints", values["ckpt_name"])
    return host.load_checkpoint(path, request, embedding_directory=folders.embedding_directory())


def _diffusers(values: Values, request: PlacementRequest) -> Loaded[Any]:
    folder = folders.diffusers_folder(values["model_path"])
    return host.load_diffusers(folder, request, embedding_directory=folders.embedding_directory())


def _vae(values: Values, request: PlacementRequest) -> Loaded[Any]:
    return host.load_vae(values["vae_name"], request)


def _clip_vision(values: Values, request: PlacementRequest) -> Loaded[Any]:
    return host.load_clip_vision(folders.full_path("clip_vision", values["clip_name"]), request)


def _control_net(values: Values, request: PlacementRequest) -> Loaded[Any]:
    path = folders.full_path("controlnet", values["control_net_name"])
    return host.load_controlnet(path, request, model=values.get("model"))


_LOADS: Final[Mapping[str, Load]] = {
    "UNETLoader": _diffusion_model,
    "VAELoader": _vae,
    "CLIPLoader": _text_encoders,
    "DualCLIPLoader": _text_encoders,
    "TripleCLIPLoader": _text_encoders,
    "QuadrupleCLIPLoader": _text_encoders,
    "CLIPVisionLoader": _clip_vision,
    "CheckpointLoaderSimple": _checkpoint,
    "ControlNetLoader": _control_net,
    "DiffControlNetLoader": _control_net,
    "DiffusersLoader": _diffusers,
    "UnetLoaderGGUF": _gguf_diffusion_model,
    "UnetLoaderGGUFAdvanced": _gguf_diffusion_model,
    "CLIPLoaderGGUF": _gguf_text_encoders,
    "DualCLIPLoaderGGUF": _gguf_text_encoders,
    "TripleCLIPLoaderGGUF": _gguf_text_encoders,
    "QuadrupleCLIPLoaderGGUF": _gguf_text_encoders,
}
