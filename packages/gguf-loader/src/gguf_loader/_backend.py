"""Which of the two implementations dequantises: eager torch, which runs anywhere, or Triton."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ._errors import GgufPackedError

_LOG = logging.getLogger(__name__)

Backend: TypeAlias = Literal["auto", "eager", "triton"]
"""`auto` is Triton on CUDA devices where it is installed, and eager torch elsewhere."""

_BACKENDS = get_args(Backend)


def require_backend(backend: str) -> None:
    """Refuse a name that is no backend.

    Raises:
        GgufPackedError: it is not one.
    """
    if backend not in _BACKENDS:
        raise GgufPackedError(f"unknown backend {backend!r}", remedy=f"choose one of {', '.join(_BACKENDS)}")


def uses_triton(backend: Backend, device: torch.device) -> bool:
    """Whether blocks on this device are dequantised by Triton.

    Raises:
        GgufPackedError: Triton is demanded where it cannot work.
    """
    require_backend(backend)
    if backend == "auto":
        return device.type == "cuda" and _has_triton()
    if backend == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise GgufPackedError("Triton does not reach memory of the CPU", remedy="use backend 'auto' or 'eager'")
    return backend == "triton"


def is_traced(data: Tensor) -> bool:
    """Whether torch records what is done with these blocks instead of doing it, and should see an operator.

    Torch before 2.13 does not say that it is compiling while it traces a method of a `PackedTensor`; what it hands in
    then, and in a `FakeTensorMode`, is a tensor of another kind.
    """
    return torch.compiler.is_compiling() or type(data) is not Tensor


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        _LOG.warning("Triton is not installed: weights on CUDA devices are dequantised by eager torch, which is slower")
    return found
