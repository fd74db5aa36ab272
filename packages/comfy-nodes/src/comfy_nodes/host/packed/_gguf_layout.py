"""GGUF blocks as a quantised layout of the host: shapes for its detection, packed bytes for its accounting.

Hosts from 0.8 on know tensors that are stored in another way than they are computed with; older ones are given the
packed tensors of gguf-loader, which are the same without the host's knowledge of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from comfy_nodes.host.placing._weights import GGUF_LAYOUT
from gguf_loader import PackedTensor, dequantize, type_by_name

try:
    from comfy.quant_ops import QuantizedLayout, QuantizedTensor, get_layout_class, register_layout_class
except ImportError:
    HAS_LAYOUTS = False
else:
    HAS_LAYOUTS = True

    @dataclass(frozen=True, kw_only=True)
    class Blocks:
        """What the host keeps beside the bytes of a packed tensor.

        Attributes:
            orig_dtype: type of the numbers that the tensor stands for.
            orig_shape: shape of these.
            ggml_type: name of the blocks' type.
            dequant_dtype: type to round to before `orig_dtype`, or None.
        """

        orig_dtype: torch.dtype
        orig_shape: tuple[int, ...]
        ggml_type: str
        dequant_dtype: torch.dtype | None = None

        def to_device(self, device: torch.device) -> Blocks:
            """The same: scales are inside the blocks, so nothing here is on a device."""
            return self

        def clone(self) -> Blocks:
            """The same."""
            return self

        def copy_from(self, source: Blocks, non_blocking: bool = False) -> None:
            """Take over what another tensor's blocks are; the host asks for it when it copies into a buffer."""
            for field in fields(self):
                object.__setattr__(self, field.name, getattr(source, field.name))

    class GgufLayout(QuantizedLayout):  # type: ignore[misc]  # the host's classes are untyped
        """The blocks of the file, unchanged."""

        Params = Blocks

        @classmethod
        def quantize(cls, tensor: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
            """Refuse: nothing here quantises.

            Raises:
                TypeError: always.
            """
            raise TypeError(
                f"weights of shape {tuple(tensor.shape)} cannot become GGUF blocks here; keep them dense, or patch the "
                "packed ones at each use"
            )

        @classmethod
        def dequantize(cls, qdata: torch.Tensor, params: Blocks) -> torch.Tensor:
            """The numbers."""
            dtype = params.dequant_dtype or params.orig_dtype
            numbers = dequantize(qdata, type_by_name(params.ggml_type), params.orig_shape, dtype=dtype)
            return numbers.to(params.orig_dtype)

        @classmethod
        def get_plain_tensors(cls, qtensor: Any) -> tuple[torch.Tensor, ...]:
            """The bytes."""
            return (qtensor._qdata,)

        @classmethod
        def state_dict_tensors(cls, qdata: torch.Tensor, params: Blocks) -> dict[str, torch.Tensor]:
            """The bytes, under the name of the weight."""
            return {"": qdata}


def stored(packed: PackedTensor, dtype: torch.dtype, dequant_dtype: torch.dtype | None) -> torch.Tensor:
    """A packed tensor as this host stores it.

    Args:
        packed: blocks of the file.
        dtype: type of the model's weights, which the tensor says it has.
        dequant_dtype: type to round to first, or None.
    """
    if not HAS_LAYOUTS:
        return packed.with_blocks(packed.packed, dtype=dtype)
    _register()
    params = Blocks(
        orig_dtype=dtype,
        orig_shape=tuple(packed.shape),
        ggml_type=str(packed.ggml_type),
        dequant_dtype=dequant_dtype,
    )
    return QuantizedTensor(packed.packed, GGUF_LAYOUT, params)  # type: ignore[no-any-return]


def packed_of(weight: Any) -> PackedTensor | None:
    """The packed tensor inside a weight, if there is one; shares its blocks."""
    if isinstance(weight, PackedTensor):
        return weight
    if getattr(weight, "_layout_cls", None) != GGUF_LAYOUT:
        return None
    params = weight._params
    return PackedTensor(weight._qdata, type_by_name(params.ggml_type), params.orig_shape, dtype=params.orig_dtype)


def _register() -> None:
    """Make the layout known to the host, once."""
    try:
        get_layout_class(GGUF_LAYOUT)
    except KeyError:
        register_layout_class(GGUF_LAYOUT, GgufLayout)
