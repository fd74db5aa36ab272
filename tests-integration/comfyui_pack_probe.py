"""A custom node for tests of other packs: where the weights in anything are, and which device a later node gets.

The harness copies this file into a folder of packs of a server under test; it is not part of the pack.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from comfy import model_management
from comfy_api.latest import io


class ProbeWhere(io.ComfyNode):  # type: ignore[misc]
    """Tells on which devices the tensors of a value are, and passes the value on."""

    @classmethod
    def define_schema(cls) -> Any:
        """One value of any kind in and out, looked at after another is made."""
        return io.Schema(
            node_id="TorchspanProbeWhere",
            inputs=[io.AnyType.Input("value"), io.AnyType.Input("after", optional=True)],
            outputs=[io.AnyType.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, value: Any, after: Any = None) -> Any:
        """Report bytes by device, and the device of a patcher, once `after` is there."""
        told = {
            "bytes": _bytes_by_device(value),
            "load_device": str(getattr(value, "load_device", "")),
            "current": str(model_management.get_torch_device()),
            "globals": sorted({str(device) for device in _globals()}),
            "exchanged": _exchanged(),
        }
        return io.NodeOutput(value, ui={"where": [told]})


class ProbeText(io.ComfyNode):  # type: ignore[misc]
    """Seeded embeddings of a text for WanVideoWrapper, in place of an encoder of 11 GB."""

    @classmethod
    def define_schema(cls) -> Any:
        """Where the embeddings are: some versions do not move them."""
        return io.Schema(
            node_id="TorchspanProbeText",
            inputs=[io.String.Input("device")],
            outputs=[io.Custom("WANVIDEOTEXTEMBEDS").Output()],
        )

    @classmethod
    def execute(cls, device: str) -> Any:
        """Two texts of eight tokens."""
        made = torch.Generator().manual_seed(3)
        positive, negative = (torch.randn(8, 4096, generator=made).to(device) for _ in range(2))
        return io.NodeOutput({"prompt_embeds": [positive], "negative_prompt_embeds": [negative], "echoshot": False})


def _tensors(value: Any, seen: set[int]) -> list[torch.Tensor]:
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, torch.nn.Module):
        own = [tensor for tensor in value.parameters() if tensor.device.type != "meta"]
        return own + _tensors(getattr(value, "pipeline", None), seen)
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in _tensors(each, seen)]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in _tensors(each, seen)]
    inner = [getattr(value, name, None) for name in ("model", "diffusion_model", "first_stage_model")]
    return [tensor for each in inner if each is not None for tensor in _tensors(each, seen)]


def _bytes_by_device(value: Any) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in _tensors(value, set()):
        device = str(tensor.device)
        sizes[device] = sizes.get(device, 0) + tensor.numel() * tensor.element_size()
    return sizes


def _modules_of_packs() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if module is not None and "_nodes/" in name]


def _globals() -> list[torch.device]:
    """Every device that a module of a pack keeps in a global named so."""
    found = [vars(module).get("device") for module in _modules_of_packs()]
    return [device for device in found if isinstance(device, torch.device)]


def _exchanged() -> list[str]:
    """Modules of packs in which something stands for the host's module that knows the devices."""
    name = "comfy.model_management"
    return [
        module.__name__
        for module in _modules_of_packs()
        for value in vars(module).values()
        if isinstance(value, ModuleType) and value.__name__ == name and value is not model_management
    ]


# The host has imported the simulated `torch_npu`; libraries of packs would look into it for what the real one offers.
sys.modules.pop("torch_npu", None)
NODE_CLASS_MAPPINGS = {"TorchspanProbeWhere": ProbeWhere, "TorchspanProbeText": ProbeText}
