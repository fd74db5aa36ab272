"""Working memory that is reused: fresh pages cost more than the arithmetic that they serve."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch

_MOST_VIEWS = 512


class Scratch:
    """Named buffers of one thread, grown on demand and handed out again and again.

    A buffer is valid until the same name is asked for again. Not safe to share between threads; see `ScratchPool`.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], torch.Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype, torch.device], torch.Tensor] = {}
        self._constants: dict[tuple[Callable[..., torch.Tensor], tuple[Any, ...], torch.device], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The buffer of this name as an uninitialised contiguous tensor."""
        key = (name, shape, dtype, device)
        view = self._views.get(key)
        if view is None:
            # Buffers born in inference mode could not be written outside of it later.
            with torch.inference_mode(False):
                view = self._buffer(name, math.prod(shape) * dtype.itemsize, device).view(dtype).view(shape)
            self._views[key] = view
        return view

    def constant(
        self, make: Callable[..., torch.Tensor], arguments: tuple[Any, ...], device: torch.device
    ) -> torch.Tensor:
        """What `make(*arguments)` returns, on a device; copied there once."""
        key = (make, arguments, device)
        held = self._constants.get(key)
        if held is None:
            with torch.inference_mode(False):
                held = self._constants[key] = make(*arguments).to(device)
        return held

    def _buffer(self, name: str, size_bytes: int, device: torch.device) -> torch.Tensor:
        held = self._buffers.get((name, device))
        if held is None or held.numel() < size_bytes:
            # Views are kept because making three a step costs as much as the step; they would keep the old buffer too.
            self._views.clear()
            held = self._buffers[name, device] = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        elif len(self._views) >= _MOST_VIEWS:
            self._views.clear()
        return held[:size_bytes]

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffers at present."""
        return sum(buffer.numel() for buffer in self._buffers.values())


class ScratchPool:
    """One `Scratch` a thread, so that a model may be run by several threads at a time.

    It belongs to whoever made it (a model's configuration, a benchmark) and its memory goes with it. Copies and
    pickles of a pool start empty.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def scratch(self) -> Scratch:
        """The working memory of the calling thread."""
        held: Scratch | None = getattr(self._local, "scratch", None)
        if held is None:
            held = self._local.scratch = Scratch()
        return held

    def __deepcopy__(self, memo: dict[int, Any]) -> ScratchPool:
        return ScratchPool()

    def __reduce__(self) -> tuple[type[ScratchPool], tuple[()]]:
        return ScratchPool, ()
