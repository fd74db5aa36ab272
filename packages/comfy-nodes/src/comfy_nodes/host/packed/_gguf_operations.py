"""The layers of a model whose weights stay packed (GGUF, w3): the host's own, but for linear layers and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ops
import torch
from torch import nn
from torch.nn import functional

from comfy_nodes.host.app import _compat
from comfy_nodes.host.packed._gguf_layout import HAS_LAYOUTS, packed_of, stored
from comfy_nodes.host.packed._w3_layout import stored_packed
from comfy_nodes.host.placing._weights import dense
from device_placement.packed import PackedWeight
from gguf_loader import DequantConfig, PackedTensor, packed_embedding


def operations(dequant_dtype: torch.dtype | None = None) -> type[Any]:
    """The host's operations for one model.

    Args:
        dequant_dtype: type that weights are rounded to before that of the model; None rounds once.
    """

    class Operations(comfy.ops.manual_cast):  # type: ignore[misc]  # the host's classes are untyped
        """Layers that the host builds its models from."""

        class Linear(_Packed, comfy.ops.manual_cast.Linear):  # type: ignore[misc]
            """A linear layer."""

            rounding = dequant_dtype

            def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
                return self.with_weights(input, functional.linear)

        class Embedding(_Packed, comfy.ops.manual_cast.Embedding):  # type: ignore[misc]
            """A lookup table; of a packed one only the rows that are looked up are dequantised, where they live."""

            rounding = dequant_dtype
            keeps_w3 = False  # to look up one row would decode all

            def forward_comfy_cast_weights(
                self, input: torch.Tensor, out_dtype: torch.dtype | None = None
            ) -> torch.Tensor:
                packed = packed_of(self.weight)
                if packed is None or self.weight_function:
                    return super().forward_comfy_cast_weights(input, out_dtype=out_dtype)  # type: ignore[no-any-return]
                rows = packed_embedding(input.to(packed.device), packed, DequantConfig())
                return rows.to(device=input.device, dtype=out_dtype or rows.dtype)

    return Operations


class _Packed:
    """Weights that keep their stored form: taken from the file, not copied into the memory of dense ones."""

    rounding: torch.dtype | None = None
    keeps_w3 = True
    weight: Any
    bias: Any
    weight_function: list[Callable[[torch.Tensor], torch.Tensor]]
    bias_function: list[Callable[[torch.Tensor], torch.Tensor]]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, torch.Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, parameter in list(self._parameters.items()):  # type: ignore[attr-defined]
            tensor = state_dict.get(prefix + name)
            if parameter is None:
                continue
            if tensor is None:
                missing_keys.append(prefix + name)
                continue
            if tensor.shape != parameter.shape:
                error_msgs.append(f"{prefix}{name} is {list(tensor.shape)} in the file, {list(parameter.shape)} here")
                continue
            kept = self._kept(name, tensor, parameter.dtype)
            self._parameters[name] = nn.Parameter(kept, requires_grad=False)  # type: ignore[attr-defined]

    def _kept(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the file as the layer stores it: weights packed where it can compute with them."""
        if name == "weight" and isinstance(tensor, PackedTensor):
            return stored(tensor, dtype, self.rounding)
        if name == "weight" and isinstance(tensor, PackedWeight) and self.keeps_w3 and dtype == torch.bfloat16:
            return stored_packed(tensor)
        return _dense(tensor, dtype)

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move the parameters; torch would move what a packed tensor looks like, not the blocks."""
        for name, parameter in self._parameters.items():  # type: ignore[attr-defined]
            if parameter is not None:
                moved = function(parameter.data)
                if moved is not parameter.data:
                    self._parameters[name] = nn.Parameter(moved, requires_grad=False)  # type: ignore[attr-defined]
        return self

    def with_weights(self, input: torch.Tensor, compute: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Compute with dense weights, brought to the device and type of the input, patched."""
        packed = packed_of(self.weight)
        if packed is None or HAS_LAYOUTS:
            with _compat.cast_weights(self, input) as (weight, bias):
                return compute(input, dense(weight), bias)
        there = packed.with_blocks(packed.packed.to(input.device))
        weight = there.dequantize(self.rounding or input.dtype).to(input.dtype)
        for change in self.weight_function:
            weight = change(weight)
        bias = self.bias
        if bias is not None:
            bias = bias.to(device=input.device, dtype=input.dtype)
            for change in self.bias_function:
                bias = change(bias)
        return compute(input, weight, bias)


def _dense(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(tensor, PackedTensor):
        return tensor.dequantize(dtype)
    # A packed weight, or a view of one, gets memory that can be written to.
    return tensor.to(dtype) if type(tensor) is torch.Tensor else torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
