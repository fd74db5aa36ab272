"""Packed blocks to weights: the public function, and the operator that torch.compile sees in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from gguf_loader._backend import Backend, is_traced
from gguf_loader._errors import GgufPackedError
from gguf_loader._scratch import ScratchPool
from gguf_loader._types import GgmlType, type_by_id

from ._weights import require_blocks, write_weights


def dequantize(
    data: Tensor,
    ggml_type: GgmlType,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    scratch: ScratchPool | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The weights of packed blocks, bit for bit those of ggml's own conversion to float32.

    Another dtype than float32 is that result, rounded once to the nearest, ties to even.

    Args:
        data: 1-D contiguous uint8 blocks on any device.
        ggml_type: type of the blocks.
        shape: shape of the result.
        dtype: dtype of the result.
        out: contiguous tensor of that shape and dtype, on the device of `data`, to write to.
        scratch: working memory to reuse; fresh for this call when not given. On the CPU it grows to 7 MiB a thread, on
            another device to 160 MiB (5 bytes a weight for smaller tensors); Triton needs none.
        backend: `auto`, `eager` (torch operations, on any device) or `triton`.

    Returns:
        `out`, or a fresh tensor.

    Raises:
        GgufTypeError: the type has no conversion to float32 (Q8_1 and Q8_K, which exist between two operations only),
            or the shape does not hold whole blocks.
        GgufPackedError: data or out do not fit, or Triton is demanded where it cannot work.

    >>> from gguf_loader import type_by_name
    >>> blocks = torch.tensor([0, 0x3C, *range(16)], dtype=torch.uint8)  # scale 1.0, nibbles 0..15 and 0
    >>> dequantize(blocks, type_by_name("Q4_0"), (2, 16))[0, :4]
    tensor([-8., -7., -6., -5.])
    """
    require_blocks(data, ggml_type, shape)
    if is_traced(data):
        found: Tensor = dequantize_op(data, ggml_type.id, list(shape), dtype, backend)
        return found if out is None else out.copy_(found)
    if out is None:
        out = torch.empty(tuple(shape), dtype=dtype, device=data.device)
    else:
        _require_fit(out, data, shape, dtype)
    write_weights(data, ggml_type, out, scratch, backend)
    return out


# Torch 2.6 cannot read list[int] from the signature.
@torch.library.custom_op(
    "gguf_loader::dequantize",
    mutates_args=(),
    schema="(Tensor packed, int type_id, int[] shape, ScalarType dtype, str backend='auto') -> Tensor",
)
def dequantize_op(packed: Tensor, type_id: int, shape: list[int], dtype: torch.dtype, backend: str = "auto") -> Tensor:
    """Weights of packed blocks as one opaque node; see `dequantize`. `type_id` is the number of the ggml type."""
    return dequantize(packed, type_by_id(type_id), shape, dtype=dtype, backend=cast(Backend, backend))


@dequantize_op.register_fake
def _(packed: Tensor, type_id: int, shape: list[int], dtype: torch.dtype, backend: str = "auto") -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


def _require_fit(out: Tensor, data: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    fits = out.dtype == dtype and out.shape == tuple(shape) and out.device == data.device
    if not fits or not out.is_contiguous():
        found = f"{out.dtype} of shape {tuple(out.shape)} on {out.device}"
        wanted = f"{dtype} of shape {tuple(shape)} on {data.device}"
        raise GgufPackedError(
            f"out is {found}, the weights are {wanted}", field="out", remedy="pass a contiguous tensor that fits"
        )
