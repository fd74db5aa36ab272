"""What this host offers, asked of its functions and classes; nothing else in the package asks for a version.

ComfyUI grew the features below between 0.3.64 and 0.33. Each probe looks for the thing itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.lora
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from comfy_nodes.host.app._packed_files import is_packed_file, read_dense

try:
    from comfy.weight_adapter.bypass import BypassForwardHook as _BypassForwardHook
except ImportError:
    _BypassForwardHook = None


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function of the host takes an argument of that name."""
    return argument in inspect.signature(function).parameters


def classic(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that make a loader return an ordinary patcher, which knows donors, instead of a dynamic one."""
    return {"disable_dynamic": True} if accepts(function, "disable_dynamic") else {}


def with_metadata(function: Callable[..., Any], metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `metadata` argument, for loaders that detect models by it."""
    return {"metadata": metadata} if accepts(function, "metadata") else {}


def read_torch_file(path: str) -> tuple[dict[str, torch.Tensor], Mapping[str, str] | None]:
    """A checkpoint of any kind that the host reads, with its metadata where the host can return it; a packed one dense.

    Raises:
        ModelFileError: a packed file is damaged.
    """
    if is_packed_file(path):
        return read_dense(path)
    if accepts(comfy.utils.load_torch_file, "return_metadata"):
        weights, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        return weights, metadata
    return comfy.utils.load_torch_file(path), None


def dynamic_vram_is_on() -> bool:
    """Whether the host pages weights itself, in a patcher that ignores where they live between forwards."""
    core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return core is not comfy.model_patcher.ModelPatcher


def is_dynamic(patcher: Any) -> bool:
    """Whether a patcher is of the kind that pages weights itself."""
    probe = getattr(patcher, "is_dynamic", None)
    return bool(probe is not None and probe())


def seed_of(key: str) -> int:
    """The host's seed for rounding a patched weight of that name."""
    home = comfy.utils if hasattr(comfy.utils, "string_to_seed") else comfy.model_patcher
    return int(home.string_to_seed(key))


def patch_dtype(device: torch.device | None) -> torch.dtype:
    """Type in which the host adds patches to weights on a device."""
    probe = getattr(management, "lora_compute_dtype", None)
    return torch.float32 if probe is None else probe(device)


@contextmanager
def cast_weights(layer: Any, input: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """A layer's weight and bias on the device and in the type of its input, for the time of their use."""
    if not accepts(comfy.ops.cast_bias_weight, "offloadable"):
        yield comfy.ops.cast_bias_weight(layer, input)
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, input, offloadable=True)
    yield weight, bias
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def aim(patcher: Any, options: Mapping[str, Any]) -> Any:
    """Make a fresh patcher load to the device of the model options, where its loader did not look at them."""
    for name in ("load_device", "offload_device"):
        if name in options:
            setattr(patcher, name, options[name])
    return patcher


def is_bypassed(layer: Any) -> bool:
    """Whether a layer runs in bypass mode: with a LoRA beside it that the host keeps on its default device."""
    owner = getattr(vars(layer).get("forward"), "__self__", None)
    return _BypassForwardHook is not None and isinstance(owner, _BypassForwardHook)


def stream_count() -> int:
    """Streams on which the host copies weights ahead of the layers that need them; 0 copies when they do."""
    return int(getattr(management, "NUM_STREAMS", 0) or 0)


def keeps_half_precision() -> bool:
    """Whether half precision keeps its type when it is loaded: the host's command line can ask for 8 bits."""
    device = management.get_torch_device()
    return bool(min(management.unet_dtype(device).itemsize, management.text_encoder_dtype(device).itemsize) > 1)
