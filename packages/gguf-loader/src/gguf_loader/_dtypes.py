"""The ggml types that are a torch dtype, and the dtypes that weights are computed in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from ._errors import GgufPackedError

NATIVE_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I8": torch.int8,
        "I16": torch.int16,
        "I32": torch.int32,
        "I64": torch.int64,
    }
)
"""ggml types that are a torch dtype."""

LOGICAL_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What a packed tensor may say that it is: the dtypes that weights are computed in."""


def require_logical_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype that weights are not computed in."""
    if dtype not in LOGICAL_DTYPES:
        raise GgufPackedError(
            f"packed weights cannot be {dtype}",
            remedy=f"choose one of {', '.join(str(known) for known in LOGICAL_DTYPES)}",
        )
