"""Custom nodes for tests, which make and show what core nodes cannot, and a look inside the server's process.

The harness copies this file into `custom_nodes` of a server under test; it is not part of the pack.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from dataclasses import asdict
from typing import Any

import torch
from aiohttp import web
from comfy import model_management
from server import PromptServer

PACKAGES = frozenset(
    {"alloc_spec", "block_discovery", "comfy_nodes", "device_placement", "gguf_loader", "ray_parallel"}
)


class ProbeConditioning:
    """Seeded conditioning of any width, as a text encoder would give it."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "torchspan tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {"default": 0, "min": 0, "max": 1 << 20})
        return {
            "required": {
                "tokens": number,
                "width": number,
                "pooled_width": number,
                "mask": ("BOOLEAN", {"default": False}),
                "seed": number,
            }
        }

    def make(self, tokens: int, width: int, pooled_width: int, mask: bool, seed: int) -> tuple[Any]:
        """Return one conditioning of shape `[1, tokens, width]`."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, width, generator=generator)
        extra: dict[str, Any] = {}
        if pooled_width:
            extra["pooled_output"] = torch.randn(1, pooled_width, generator=generator)
        if mask:
            extra["attention_mask"] = torch.ones(1, tokens)
        return ([[text, extra]],)


class ProbeVision:
    """What an image encoder saw, as a latent, so that the core node for latents saves every bit of it."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "show"
    CATEGORY = "torchspan tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seen": ("CLIP_VISION_OUTPUT",)}}

    def show(self, seen: Any) -> tuple[dict[str, torch.Tensor]]:
        """Return the last hidden state and the projection, one after the other."""
        return ({"samples": torch.cat([seen["last_hidden_state"].flatten(), seen["image_embeds"].flatten()])},)


def _weights(model: Any) -> dict[str, int]:
    """Bytes of weights on each device, each storage once."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        inner = getattr(tensor, "_qdata", tensor)
        if inner.device.type == "meta" or inner.data_ptr() in seen:
            continue
        seen.add(inner.data_ptr())
        sizes[str(inner.device)] = sizes.get(str(inner.device), 0) + inner.numel() * inner.element_size()
    return sizes


def _planned(model: Any) -> dict[str, int]:
    """Bytes of the layers that the pack's plan gives to each donor; empty for a model without a plan."""
    placement = getattr(model, "_torchspan_placement", None)
    sizes: dict[str, int] = {}
    if placement is not None:
        for name, home in placement.homes.items():
            sizes[str(home)] = sizes.get(str(home), 0) + sum(_weights(placement.layers[name]).values())
    return sizes


def _loaded(entry: Any) -> dict[str, Any]:
    patcher = entry.model
    return {
        "patcher": type(patcher).__name__,
        "model": type(patcher.model).__name__,
        "load_device": str(patcher.load_device),
        "model_size": int(patcher.model_size()),
        "loaded_size": int(patcher.loaded_size()),
        "weights": _weights(patcher.model),
        "planned": _planned(patcher.model),
    }


def _simulated() -> dict[str, Any]:
    simdev = sys.modules.get("simdev")
    if simdev is None:
        return {}
    return {
        "memory": {f"npu:{index}": asdict(simdev.mem(index)) for index in range(torch.accelerator.device_count())},
        "links": [asdict(link) for link in simdev.links()],
        "violations": list(simdev.violations()),
    }


def _idle() -> bool:
    """The worker waits for a prompt: nothing runs, and what `/free` asked for is done."""
    queue = PromptServer.instance.prompt_queue
    return bool(queue.not_empty._waiters) and not queue.flags and not queue.get_tasks_remaining()


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one line of a pseudo file
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def state(_request: web.Request) -> web.Response:
    """Answer with the state of the process."""
    return web.json_response(
        {
            "resident_bytes": _resident_bytes(),
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names alone are wanted
            "origins": {
                name: str(getattr(module, "__file__", None))
                for name, module in list(sys.modules.items())
                if name in PACKAGES
            },
            "modules": sorted({name.partition(".")[0] for name in sys.modules}),
            "loaded": [_loaded(entry) for entry in model_management.current_loaded_models if entry.model is not None],
            "simulated": _simulated(),
        }
    )


async def idle(_request: web.Request) -> web.Response:
    """Answer whether the worker waits for a prompt."""
    return web.json_response(_idle())


async def collect(_request: web.Request) -> web.Response:
    """Collect cycles, as the host does from time to time, so that what is left is really held."""
    return web.json_response(gc.collect())


async def set_capacity(request: web.Request) -> web.Response:
    """Change how many bytes a simulated device holds."""
    asked = await request.json()
    sys.modules["simdev"].set_capacity(asked["device"], asked["bytes"])
    return web.json_response(asked)


PromptServer.instance.routes.get("/torchspan-probe/state")(state)
PromptServer.instance.routes.get("/torchspan-probe/idle")(idle)
PromptServer.instance.routes.post("/torchspan-probe/collect")(collect)
PromptServer.instance.routes.post("/torchspan-probe/capacity")(set_capacity)
NODE_CLASS_MAPPINGS = {"TorchspanProbeConditioning": ProbeConditioning, "TorchspanProbeVision": ProbeVision}
