"""A custom node for tests: conditioning without a text encoder, and a look inside the server's process.

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


def _loaded(entry: Any) -> dict[str, Any]:
    patcher = entry.model
    return {
        "patcher": type(patcher).__name__,
        "model": type(patcher.model).__name__,
        "load_device": str(patcher.load_device),
        "model_size": int(patcher.model_size()),
        "loaded_size": int(patcher.loaded_size()),
        "weights": _weights(patcher.model),
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
    gc.collect()
    return web.json_response(
        {
            "resident_bytes": _resident_bytes(),
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names alone are wanted
            "modules": sorted({name.partition(".")[0] for name in sys.modules}),
            "loaded": [_loaded(entry) for entry in model_management.current_loaded_models if entry.model is not None],
            "simulated": _simulated(),
            "idle": _idle(),
        }
    )


PromptServer.instance.routes.get("/torchspan-probe/state")(state)
NODE_CLASS_MAPPINGS = {"TorchspanProbeConditioning": ProbeConditioning}
