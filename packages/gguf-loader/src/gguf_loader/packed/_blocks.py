"""What a packed tensor consists of: a logical shape and dtype outside, blocks of a ggml type inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from gguf_loader._dtypes import require_logical_dtype
from gguf_loader._types import GgmlType
from gguf_loader.dequant._weights import require_blocks


class BlockTensor(torch.Tensor):
    """The parts of a `PackedTensor`, which its operations need; nothing is made of this class itself.

    Attributes:
        packed: the blocks, 1-D contiguous uint8.
        ggml_type: the type of the blocks.
    """

    packed: torch.Tensor
    ggml_type: GgmlType

    @staticmethod
    def __new__(
        cls, data: torch.Tensor, ggml_type: GgmlType, shape: Sequence[int], *, dtype: torch.dtype = torch.bfloat16
    ) -> Self:
        """Check that blocks, type and shape agree, and wrap them."""
        require_blocks(data, ggml_type, shape)
        require_logical_dtype(dtype)
        return torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=data.device, storage_size=data.numel()
        )

    def __init__(
        self, data: torch.Tensor, ggml_type: GgmlType, shape: Sequence[int], *, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.packed = data
        self.ggml_type = ggml_type

    def with_blocks(
        self, data: torch.Tensor, shape: Sequence[int] | None = None, *, dtype: torch.dtype | None = None
    ) -> Self:
        """A tensor of this type, and of this shape and dtype unless given, over other blocks."""
        return type(self)(
            data, self.ggml_type, self.shape if shape is None else shape, dtype=self.dtype if dtype is None else dtype
        )
