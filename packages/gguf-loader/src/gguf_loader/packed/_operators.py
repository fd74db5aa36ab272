"""Products with packed matrices as torch operators: one opaque node for torch.compile, with a gradient for autograd.

The operator is `torch.ops.gguf_loader.linear`; `torch.ops.gguf_loader.dequantize` is beside `dequantize`. Both take
plain tensors and numbers, so they work on the parts of a `PackedTensor`; a compiled graph cannot carry working memory
along, which is then fresh in every call.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gguf_loader._backend import Backend
from gguf_loader._scratch import ScratchPool
from gguf_loader._types import type_by_id

from ._tiles import Tiling, input_gradient_by_tiles, linear_by_tiles, tiling_of


@torch.library.custom_op("gguf_loader::linear", mutates_args=())
def linear_op(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    type_id: int,
    out_features: int,
    dtype: torch.dtype,
    tile_weights: int,
    backend: str = "auto",
) -> Tensor:
    """Product with a packed matrix; see `packed_linear`."""
    tiling = _tiling(type_id, out_features, x.shape[-1], dtype, tile_weights, backend)
    return linear_by_tiles(x, packed, bias, tiling, ScratchPool())


@linear_op.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    type_id: int,
    out_features: int,
    dtype: torch.dtype,
    tile_weights: int,
    backend: str = "auto",
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.custom_op("gguf_loader::linear_backward", mutates_args=())
def linear_backward_op(
    gradient: Tensor,
    packed: Tensor,
    type_id: int,
    in_features: int,
    dtype: torch.dtype,
    tile_weights: int,
    backend: str = "auto",
) -> Tensor:
    """Gradient of `linear` with respect to its activations."""
    tiling = _tiling(type_id, gradient.shape[-1], in_features, dtype, tile_weights, backend)
    return input_gradient_by_tiles(gradient, packed, tiling, ScratchPool())


@linear_backward_op.register_fake
def _(
    gradient: Tensor,
    packed: Tensor,
    type_id: int,
    in_features: int,
    dtype: torch.dtype,
    tile_weights: int,
    backend: str = "auto",
) -> Tensor:
    return gradient.new_empty((*gradient.shape[:-1], in_features))


def _tiling(type_id: int, rows: int, columns: int, dtype: torch.dtype, tile_weights: int, backend: str) -> Tiling:
    return tiling_of(type_by_id(type_id), rows, columns, dtype, tile_weights, cast(Backend, backend))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, bias, type_id, _, *choices = inputs
    ctx.save_for_backward(packed)
    ctx.arguments = (type_id, x.shape[-1], *choices)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (packed,) = ctx.saved_tensors
    of_x = linear_backward_op(gradient, packed, *ctx.arguments) if ctx.needs_input_grad[0] else None
    of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    return of_x, None, of_bias, None, None, None, None, None


linear_op.register_autograd(_backward, setup_context=_keep_for_backward)
