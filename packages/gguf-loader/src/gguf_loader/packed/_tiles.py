"""A packed matrix by tiles: some rows are made dense, used, and overwritten by the next ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gguf_loader._backend import Backend
from gguf_loader._scratch import ScratchPool
from gguf_loader._types import GgmlType
from gguf_loader.dequant._weights import write_weights


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a packed matrix is made dense.

    Attributes:
        kind: type of the blocks.
        rows: rows of the whole matrix.
        columns: columns, the weights of a row.
        dtype: of the dense tiles.
        tile_weights: weights that are dense at a time.
        backend: what makes them dense.
    """

    kind: GgmlType
    rows: int
    columns: int
    dtype: torch.dtype
    tile_weights: int
    backend: Backend = "auto"

    @functools.cached_property
    def tile_rows(self) -> int:
        """Rows of a tile: whole blocks, at least the fewest that are."""
        step = self.kind.block_size // math.gcd(self.kind.block_size, self.columns)
        return max(1, self.tile_weights // (self.columns * step)) * step

    def tiles(self, blocks: Tensor, scratch: ScratchPool) -> Iterator[tuple[slice, Tensor]]:
        """Each tile's rows and its dense weights (rows, columns), valid until the next tile."""
        for first in range(0, self.rows, self.tile_rows):
            last = min(first + self.tile_rows, self.rows)
            some = blocks[self.kind.size_bytes(first * self.columns) : self.kind.size_bytes(last * self.columns)]
            yield slice(first, last), self.dense(some, last - first, scratch)

    def dense(self, blocks: Tensor, rows: int, scratch: ScratchPool) -> Tensor:
        """So many rows, dense, valid until the next call."""
        shape = (rows, self.columns)
        tile = scratch.scratch().take("tile", shape, self.dtype, blocks.device)
        write_weights(blocks, self.kind, tile, scratch, self.backend)
        return tile


@functools.lru_cache(maxsize=1024)
def tiling_of(
    kind: GgmlType, rows: int, columns: int, dtype: torch.dtype, tile_weights: int, backend: Backend
) -> Tiling:
    """The tiling of a matrix; a model has few different ones and asks for them in every forward."""
    return Tiling(kind=kind, rows=rows, columns=columns, dtype=dtype, tile_weights=tile_weights, backend=backend)


def linear_by_tiles(x: Tensor, blocks: Tensor, bias: Tensor | None, tiling: Tiling, scratch: ScratchPool) -> Tensor:
    """`x @ weight.T + bias` in the dtype of the tiling, back in the dtype of `x`; where no gradient is asked for."""
    if tiling.tile_rows >= tiling.rows:
        weight = tiling.dense(blocks, tiling.rows, scratch)
        if x.dtype == tiling.dtype and (bias is None or bias.dtype == x.dtype):
            return torch.nn.functional.linear(x, weight, bias)
        bias = None if bias is None else bias.to(tiling.dtype)
        return torch.nn.functional.linear(x.to(tiling.dtype), weight, bias).to(x.dtype)
    flat = x.reshape(-1, tiling.columns).to(tiling.dtype)
    y = torch.empty(flat.shape[0], tiling.rows, dtype=tiling.dtype, device=x.device)
    for rows, tile in tiling.tiles(blocks, scratch):
        if bias is None:
            torch.mm(flat, tile.t(), out=y[:, rows])
        else:
            torch.addmm(bias[rows].to(tiling.dtype), flat, tile.t(), out=y[:, rows])
    return y.to(x.dtype).view(*x.shape[:-1], tiling.rows)


@torch.no_grad()
def input_gradient_by_tiles(gradient: Tensor, blocks: Tensor, tiling: Tiling, scratch: ScratchPool) -> Tensor:
    """`gradient @ weight`, what flows back to the activations."""
    flat = gradient.reshape(-1, tiling.rows).to(tiling.dtype)
    total = torch.zeros(flat.shape[0], tiling.columns, dtype=tiling.dtype, device=gradient.device)
    for rows, tile in tiling.tiles(blocks, scratch):
        total.addmm_(flat[:, rows], tile)
    return total.to(gradient.dtype).view(*gradient.shape[:-1], tiling.columns)
