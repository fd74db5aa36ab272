"""Packed bf16 as a quantised layout of the host: fewer bytes wherever it lives, the same numbers where it computes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from comfy_nodes.host.packed._gguf_layout import HAS_LAYOUTS
from comfy_nodes.host.placing._weights import W3_LAYOUT
from device_placement.packed import Layout, PackedWeight, decode_with

try:
    from comfy.quant_ops import QuantizedLayout, QuantizedTensor, get_layout_class, register_layout_class
except ImportError:
    pass
else:

    @dataclass(frozen=True, kw_only=True)
    class Planes:
        """What the host keeps beside the buffer of a packed weight.

        Attributes:
            orig_dtype: bfloat16.
            orig_shape: shape of the weights.
            w3: the layout of the buffer.
        """

        orig_dtype: torch.dtype
        orig_shape: tuple[int, ...]
        w3: Layout

        def to_device(self, device: torch.device) -> Planes:
            """The same: everything that is on a device is in the buffer."""
            return self

        def clone(self) -> Planes:
            """The same."""
            return self

        def copy_from(self, source: Planes, non_blocking: bool = False) -> None:
            """Take over what belongs to another buffer; the host asks for it when it copies that one here."""
            for field in fields(self):
                object.__setattr__(self, field.name, getattr(source, field.name))

    class W3Layout(QuantizedLayout):  # type: ignore[misc]  # the host's classes are untyped
        """The planes of `device_placement.packed`."""

        Params = Planes

        @classmethod
        def quantize(cls, tensor: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
            """Refuse: patched weights may take more bytes, and the host has memory for those of before.

            Raises:
                TypeError: always.
            """
            raise TypeError(
                f"weights of shape {tuple(tensor.shape)} are not packed again here; patch them at each use, or unpack "
                "the file with `torchspan unpack`"
            )

        @classmethod
        def dequantize(cls, qdata: torch.Tensor, params: Planes) -> torch.Tensor:
            """The weights, bit for bit those of the file."""
            return decode_with(qdata, params.w3)

        @classmethod
        def get_plain_tensors(cls, qtensor: Any) -> tuple[torch.Tensor, ...]:
            """The buffer."""
            return (qtensor._qdata,)

        @classmethod
        def state_dict_tensors(cls, qdata: torch.Tensor, params: Planes) -> dict[str, torch.Tensor]:
            """The weights, dense, so that nobody saves the buffer as numbers."""
            return {"": decode_with(qdata, params.w3)}


def stored_packed(weight: PackedWeight) -> torch.Tensor:
    """A packed weight as this host stores it; dense on hosts before 0.8, which know no layouts."""
    if not HAS_LAYOUTS:
        return weight.dense()
    try:
        get_layout_class(W3_LAYOUT)
    except KeyError:
        register_layout_class(W3_LAYOUT, W3Layout)
    params = Planes(orig_dtype=torch.bfloat16, orig_shape=tuple(weight.shape), w3=weight.layout_w3)
    return QuantizedTensor(weight.packed, W3_LAYOUT, params)  # type: ignore[no-any-return]
