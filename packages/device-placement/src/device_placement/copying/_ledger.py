"""Which of the buffers that were handed out are still there."""

from __future__ import annotations

import weakref

from torch import Tensor


class Ledger:
    """Adds up the bytes of buffers for as long as somebody holds them.

    >>> import torch
    >>> ledger = Ledger()
    >>> buffer = ledger.note(torch.empty(8, dtype=torch.uint8))
    >>> before = ledger.used_bytes
    >>> del buffer
    >>> before, ledger.used_bytes
    (8, 0)
    """

    def __init__(self) -> None:
        self._buffers: list[weakref.ref[Tensor]] = []

    def note(self, buffer: Tensor) -> Tensor:
        """Count a flat uint8 `buffer` from now on; returns it."""
        self._buffers.append(weakref.ref(buffer))
        return buffer

    @property
    def used_bytes(self) -> int:
        """Bytes of the buffers that are still held."""
        self._buffers = [reference for reference in self._buffers if reference() is not None]
        return sum(buffer.numel() for reference in self._buffers if (buffer := reference()) is not None)
