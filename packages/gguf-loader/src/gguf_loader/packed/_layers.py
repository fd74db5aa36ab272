"""Layers whose weight stays packed: the torch layers they are made from, and still instances of them."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn

from gguf_loader._errors import GgufPackedError
from gguf_loader.dequant._dequantize import dequantize

from ._config import DequantConfig
from ._linear import packed_embedding, packed_linear
from ._tensor import PackedTensor


class _Packed(nn.Module):
    """What packed layers have in common: a packed weight and the configuration of their model."""

    weight: Tensor
    config: DequantConfig

    @property
    def packed_weight(self) -> PackedTensor:
        """The weight, known to be packed.

        Raises:
            GgufPackedError: it was replaced by a dense one.
        """
        weight = self.weight
        if not isinstance(weight, PackedTensor):
            raise GgufPackedError(
                f"the weight of a {type(self).__name__} is a dense {weight.dtype}",
                remedy="assign a PackedTensor, or use the ordinary torch layer",
            )
        return weight

    def extra_repr(self) -> str:
        weight = self.weight
        return f"{super().extra_repr()}, packed={weight.ggml_type if isinstance(weight, PackedTensor) else 'no'}"


class GgufLinear(_Packed, nn.Linear):
    """`torch.nn.Linear` with a packed weight (out_features, in_features), dequantised by tiles of rows when it is used.

    Made by `load_packed`, or `pack_layer`. Gradients flow through it to the activations.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype of the input."""
        return packed_linear(input, self.packed_weight, self.bias, self.config)


class GgufEmbedding(_Packed, nn.Embedding):
    """`torch.nn.Embedding` with a packed weight: only the rows that are looked up are dequantised."""

    def forward(self, input: Tensor) -> Tensor:
        """Integers of any shape to (*shape, embedding_dim), in the dtype of the weight."""
        return packed_embedding(input, self.packed_weight, self.config)


class _PackedConv(_Packed):
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """As the torch layer; the weight, mostly small, is dequantised as a whole in the dtype of the product."""
        dtype = self.config.dequant_dtype or input.dtype
        kind, blocks, shape = self.packed_weight.ggml_type, self.packed_weight.packed, self.packed_weight.shape
        config = self.config
        weight = dequantize(blocks, kind, shape, dtype=dtype, scratch=config.scratch, backend=config.backend)
        bias = None if self.bias is None else self.bias.to(dtype)
        found: Tensor = self._conv_forward(input.to(dtype), weight, bias)  # type: ignore[operator]
        return found.to(input.dtype)


class GgufConv1d(_PackedConv, nn.Conv1d):
    """`torch.nn.Conv1d` with a packed weight."""


class GgufConv2d(_PackedConv, nn.Conv2d):
    """`torch.nn.Conv2d` with a packed weight."""


class GgufConv3d(_PackedConv, nn.Conv3d):
    """`torch.nn.Conv3d` with a packed weight."""


PackedLayer: TypeAlias = GgufLinear | GgufEmbedding | GgufConv1d | GgufConv2d | GgufConv3d
"""Any layer whose weight stays packed."""
