"""Patches on weights that live elsewhere: computed when the weight is cast, equal to written ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.float
import comfy.lora
import comfy.model_patcher
import torch
from torch import nn

from comfy_nodes.host.app import _compat
from gguf_loader import PackedTensor

PARAMETERS = ("weight", "bias")
GGUF_LAYOUT = "TorchspanGgufLayout"
"""Name under which the layout of GGUF blocks is registered with the host."""

W3_LAYOUT = "TorchspanW3Layout"
"""Name of the layout of packed bf16."""

_OWN_LAYOUTS = frozenset({GGUF_LAYOUT, W3_LAYOUT})

Patches = Mapping[str, list[Any]]


class CastPatch:
    """Adds a model's patches to one weight, on the device and at the moment of its use.

    The arithmetic is that of the host when it writes patches into a resident weight: the same type, the same rounding
    with the same seed. So a LoRA gives the same picture wherever the weight lives, and a donor's weight is never
    written to.

    Args:
        key: name of the weight in the model.
        patches: all patches of the model, by key; read at each call.
        stored_dtype: type of the weight where it lives, to which a written patch would have been rounded.
        dtype: type to compute patches in; the host's choice where None.
        set_weight: the layer's own way to store a patched weight, if it has one.
    """

    def __init__(
        self,
        key: str,
        patches: Patches,
        *,
        stored_dtype: torch.dtype,
        dtype: torch.dtype | None = None,
        set_weight: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.key = key
        self.patches = patches
        self.stored_dtype = stored_dtype
        self.dtype = dtype
        self.set_weight = set_weight

    def originals(self) -> dict[str, list[tuple[torch.Tensor]]] | None:
        """Weights without any patch by key, for patches that are differences to them."""
        return None

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The patched weight, in the type and on the device of `weight`."""
        computed = weight.to(self.dtype or _compat.patch_dtype(weight.device), copy=True)
        patches, originals = self.patches[self.key], self.originals()
        patched = comfy.lora.calculate_weight(patches, computed, self.key, original_weights=originals)
        seed = _compat.seed_of(self.key)
        if self.set_weight is None:
            stored = comfy.float.stochastic_rounding(patched, self.stored_dtype, seed=seed)
        else:
            stored = self.set_weight(patched, inplace_update=False, seed=seed, return_weight=True)
        return dense(stored).to(weight.dtype)


class HookPatch(CastPatch):
    """The same for patches of the host's hooks, which may replace a weight by that of another model."""

    def __init__(self, key: str, patches: Patches, layer: nn.Module, **options: Any) -> None:
        super().__init__(key, patches, dtype=torch.float32, **options)
        self.layer = layer

    def originals(self) -> dict[str, list[tuple[torch.Tensor]]]:
        """The stored weight of the layer."""
        return {self.key: [(dense(getattr(self.layer, self.key.rpartition(".")[2])),)]}


def attach(
    model: nn.Module,
    name: str,
    layer: nn.Module,
    patches: Patches,
    wrappers: Mapping[str, list[Callable[..., Any]]],
    *,
    dtype: torch.dtype | None = None,
    parameters: Sequence[str] = PARAMETERS,
) -> None:
    """Make a layer apply the patches and wrappers of its parameters when they are cast, beside those of hooks.

    Args:
        model: that the layer belongs to.
        name: of the layer.
        layer: whose `weight_function` and `bias_function` are replaced.
        patches: all patches of the model, by key.
        wrappers: other functions of weights, by key.
        dtype: type to compute patches in; the host's choice where None.
        parameters: those that are patched at use. A parameter that is left out is patched in place.
    """
    for parameter in parameters:
        key = f"{name}.{parameter}"
        functions: list[Callable[..., Any]] = []
        if key in patches:
            weight, set_weight, _ = comfy.model_patcher.get_key_weight(model, key)
            functions.append(CastPatch(key, patches, stored_dtype=weight.dtype, dtype=dtype, set_weight=set_weight))
        functions.extend(wrappers.get(key, ()))
        functions.extend(one for one in getattr(layer, f"{parameter}_function", ()) if isinstance(one, HookPatch))
        setattr(layer, f"{parameter}_function", functions)


def detach(layer: nn.Module, *, only_hooks: bool = False) -> None:
    """Take the patches off a layer, or those of hooks alone; functions of others stay."""
    for parameter in PARAMETERS:
        functions = getattr(layer, f"{parameter}_function", None)
        if functions:
            kept = [one for one in functions if not isinstance(one, HookPatch if only_hooks else CastPatch)]
            setattr(layer, f"{parameter}_function", kept)


def add_hook(model: nn.Module, key: str, patches: Patches) -> None:
    """Make a layer add the patches of hooks to one weight when it is cast, after those that it has already."""
    name, _, parameter = key.rpartition(".")
    layer = model.get_submodule(name)
    weight, set_weight, _ = comfy.model_patcher.get_key_weight(model, key)
    patch = HookPatch(key, patches, layer, stored_dtype=weight.dtype, set_weight=set_weight)
    setattr(layer, f"{parameter}_function", [*getattr(layer, f"{parameter}_function", ()), patch])


def has_foreign_functions(layer: nn.Module) -> bool:
    """Whether somebody else changes a layer's weights at each use."""
    functions = [one for parameter in PARAMETERS for one in getattr(layer, f"{parameter}_function", ())]
    return any(not isinstance(one, CastPatch) for one in functions)


def is_packed(weight: Any) -> bool:
    """Whether a weight is stored as blocks that only dequantisation can read."""
    return isinstance(weight, PackedTensor) or (hasattr(weight, "_qdata") and weight._layout_cls in _OWN_LAYOUTS)


def is_quantised(weight: Any) -> bool:
    """Whether a weight is stored in a quantised layout of the host's own (fp8, int8, nvfp4 and others)."""
    return hasattr(weight, "_qdata") and weight._layout_cls not in _OWN_LAYOUTS


def dense(weight: torch.Tensor) -> torch.Tensor:
    """The numbers of a weight that its layer may store packed."""
    return weight.dequantize() if isinstance(weight, PackedTensor) or hasattr(weight, "_qdata") else weight
