"""The host adapter: the only part of Torchspan that imports ComfyUI.

A loader function takes file paths, the core loader's own options and a `PlacementRequest`, and returns the host's own
object. Its weights are placed when the host loads it, through the host's own accounting, and nothing of the host is
patched. Requests and reports are plain data and need no host; everything else imports it when it is first asked for.

May import: nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from comfy_nodes.host._errors import HostError, ModelFileError, PlacementRefusedError, UnknownDeviceError
from comfy_nodes.host._request import Allocation, Checkpoint, Loaded, PlacementReport, PlacementRequest

if TYPE_CHECKING:
    from comfy_nodes.host.app._devices import DeviceInfo, available_devices, device_names, release
    from comfy_nodes.host.loaders._gguf import load_gguf_diffusion_model, load_gguf_text_encoders
    from comfy_nodes.host.loaders._models import (
        load_checkpoint,
        load_diffusers,
        load_diffusion_model,
        load_text_encoders,
    )
    from comfy_nodes.host.loaders._parts import load_clip_vision, load_controlnet, load_vae
    from comfy_nodes.host.placing._planning import plan_file
else:
    _NEED_HOST = {
        "DeviceInfo": "app._devices",
        "available_devices": "app._devices",
        "device_names": "app._devices",
        "load_checkpoint": "loaders._models",
        "load_clip_vision": "loaders._parts",
        "load_controlnet": "loaders._parts",
        "load_diffusers": "loaders._models",
        "load_diffusion_model": "loaders._models",
        "load_gguf_diffusion_model": "loaders._gguf",
        "load_gguf_text_encoders": "loaders._gguf",
        "load_text_encoders": "loaders._models",
        "load_vae": "loaders._parts",
        "plan_file": "placing._planning",
        "release": "app._devices",
    }

    def __getattr__(name: str) -> object:
        """Import what needs the host when it is first asked for."""
        if name not in _NEED_HOST:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_NEED_HOST[name]}"), name)
        return value


__all__ = [
    "Allocation",
    "Checkpoint",
    "DeviceInfo",
    "HostError",
    "Loaded",
    "ModelFileError",
    "PlacementRefusedError",
    "PlacementReport",
    "PlacementRequest",
    "UnknownDeviceError",
    "available_devices",
    "device_names",
    "load_checkpoint",
    "load_clip_vision",
    "load_controlnet",
    "load_diffusers",
    "load_diffusion_model",
    "load_gguf_diffusion_model",
    "load_gguf_text_encoders",
    "load_text_encoders",
    "load_vae",
    "plan_file",
    "release",
]
