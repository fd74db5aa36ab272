"""Products with packed weights, and rows of packed tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from gguf_loader._backend import is_traced
from gguf_loader._errors import GgufPackedError
from gguf_loader.dequant._dequantize import dequantize

from ._config import DequantConfig
from ._operators import linear_op
from ._tensor import PackedTensor
from ._tiles import linear_by_tiles, tiling_of

Change: TypeAlias = Callable[[Tensor], Tensor]
"""A patch: takes a dense tensor that it may write to, returns one of the same shape."""


def packed_linear(
    x: Tensor,
    weight: PackedTensor,
    bias: Tensor | None,
    config: DequantConfig,
    *,
    weight_changes: Sequence[Change] = (),
    bias_changes: Sequence[Change] = (),
) -> Tensor:
    """`x @ weight.T + bias`, by tiles: the dense weight never exists as a whole unless a patch needs it.

    Args:
        x: (..., in_features) activations of a floating dtype, on the device of the weight.
        weight: (out_features, in_features).
        bias: (out_features,), dense, or None.
        config: the model's choices.
        weight_changes: patches of the weight. Each is called once, in this order, with the dense weight in the dtype of
            the product; the result has the bits of a dense layer with that weight. The blocks stay unchanged.
        bias_changes: patches of the bias, likewise on a copy.

    Returns:
        (..., out_features) in the dtype of `x`, or that of autocast. Gradients flow to `x` and `bias`; the weight has
        none.

    Raises:
        GgufPackedError: the weight is not a matrix with as many columns as `x` has features, a patch changes a shape,
            or there is no bias to patch.
    """
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise GgufPackedError(
            f"activations of shape {tuple(x.shape)} do not fit a weight of shape {tuple(weight.shape)}",
            remedy="the last dimension of the activations must be the number of columns of the weight",
        )
    device_type = x.device.type
    # Torch before 2.14 cannot trace the first question, and what is compiled has autocast.
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    if has_autocast and torch.is_autocast_enabled(device_type):
        x = x.to(torch.get_autocast_dtype(device_type))
    kind, (rows, columns), dtype = weight.ggml_type, weight.shape, config.dequant_dtype or x.dtype
    if bias_changes:
        bias = _changed_bias(bias, bias_changes, dtype)
    if weight_changes:
        dense = dequantize(
            weight.packed, kind, weight.shape, dtype=dtype, scratch=config.scratch, backend=config.backend
        )
        dense = _changed(dense, weight_changes, "weights")
        bias = None if bias is None else bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), dense, bias).to(x.dtype)
    tile_weights, backend = config.tile_weights_on(x.device), config.backend
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if needs_grad or is_traced(weight.packed):
        found: Tensor = linear_op(x, weight.packed, bias, kind.id, rows, dtype, tile_weights, backend)
        return found
    tiling = tiling_of(kind, rows, columns, dtype, tile_weights, backend)
    return linear_by_tiles(x, weight.packed, bias, tiling, config.scratch)


@torch.no_grad()
def packed_embedding(indices: Tensor, weight: PackedTensor, config: DequantConfig) -> Tensor:
    """The rows of `weight` at `indices`; only those are dequantised.

    Args:
        indices: integers of any shape, on the device of the weight.
        weight: (rows, features), rows of whole blocks.
        config: the model's choices. `dequant_dtype` has no effect here: nothing is multiplied.

    Returns:
        (*indices.shape, features) in the dtype of the weight.

    Raises:
        GgufPackedError: the weight is no matrix, or a row of it does not hold whole blocks.
        IndexError: an index is out of range.
    """
    if weight.ndim != 2:
        raise GgufPackedError(
            f"a table of shape {tuple(weight.shape)} is no matrix", remedy="pass a weight of (rows, features)"
        )
    kind, features = weight.ggml_type, weight.shape[1]
    if features % kind.block_size:
        raise GgufPackedError(
            f"rows of {features} weights do not hold whole {kind.name} blocks of {kind.block_size}",
            remedy="dequantise the embedding once, when it is loaded",
        )
    rows = weight.packed.view(weight.shape[0], -1).index_select(0, indices.reshape(-1))
    shape = (*indices.shape, features)
    return dequantize(rows.view(-1), kind, shape, dtype=weight.dtype, scratch=config.scratch, backend=config.backend)


def _changed_bias(bias: Tensor | None, changes: Sequence[Change], dtype: torch.dtype) -> Tensor:
    if bias is None:
        raise GgufPackedError(
            "the layer has no bias to change",
            field="bias_changes",
            remedy="pass bias changes only where there is a bias",
        )
    # A copy always: a change may write to its argument, and the bias belongs to the layer.
    return _changed(bias.to(dtype, copy=True), changes, "biases")


def _changed(dense: Tensor, changes: Sequence[Change], what: str) -> Tensor:
    shape, dtype = dense.shape, dense.dtype
    for change in changes:
        dense = change(dense).to(dtype)
        if dense.shape != shape:
            raise GgufPackedError(
                f"a change made {tuple(shape)} {what} {tuple(dense.shape)}", remedy="a change must keep the shape"
            )
    return dense
