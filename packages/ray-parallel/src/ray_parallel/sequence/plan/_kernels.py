"""The functions that a plan leaves attention to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""kernel(q, k, v, mask) -> out: attention over whole sequences and any number of heads, [B, H, S, D]."""

MaskKernel = Callable[[Any, Tensor, Tensor, Tensor, Kernel], Tensor]
"""mask_kernel(mask, q, k, v, attend) -> out: applies a mask object to whole sequences, [B, H, S, D]; `attend(q, k, v,
mask)` is the attention that the model uses."""
