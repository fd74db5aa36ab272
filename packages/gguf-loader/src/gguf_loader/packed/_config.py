"""How one model dequantises: a value that its layers share, and that no other model sees."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gguf_loader._backend import Backend, require_backend
from gguf_loader._dtypes import require_logical_dtype
from gguf_loader._scratch import ScratchPool


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantConfig:
    """Choices of one model.

    Attributes:
        dequant_dtype: dtype that weights are rounded to and that products are computed in; the dtype of the
            activations when None. Activations are converted before the product and the result is converted back.
        patch_dtype: dtype that low-rank terms (LoRA) are kept and computed in; that of the product when None.
        tile_weights: weights of a linear layer that are dense at a time; None leaves it to the device: 1 Mi on the CPU,
            where a tile should stay in the cache, and 64 Mi elsewhere, where few large products are faster.
        backend: `auto` (Triton on CUDA devices where it is installed, else eager torch), `eager` or `triton`.
        scratch: working memory of the model's layers, one set a thread.
    """

    dequant_dtype: torch.dtype | None = None
    patch_dtype: torch.dtype | None = None
    tile_weights: int | None = None
    backend: Backend = "auto"
    scratch: ScratchPool = field(default_factory=ScratchPool, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_backend(self.backend)
        for dtype in (self.dequant_dtype, self.patch_dtype):
            if dtype is not None:
                require_logical_dtype(dtype)
        tile = self.tile_weights
        if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
            raise ValueError(f"tile_weights is {tile!r}; pass a positive whole number, or None for the default")

    def tile_weights_on(self, device: torch.device) -> int:
        """Weights that are dense at a time on this device."""
        if self.tile_weights is not None:
            return self.tile_weights
        return 1 << 20 if device.type == "cpu" else 1 << 26
