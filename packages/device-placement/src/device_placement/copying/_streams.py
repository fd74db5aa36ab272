"""Copies on an accelerator: one stream a link, ordered by events alone, so that the host never waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from device_placement.copying._worker import Job, Worker
from device_placement.machine._copies import copy_on


class StreamTransfer(Protocol):
    """One repeated copy on streams."""

    @property
    def stream(self) -> torch.Stream:
        """The stream of the compute device that writes the slot."""

    def start(self, free: torch.Event) -> None:
        """Copy as soon as the slot is free."""

    def arrive(self, stream: torch.Stream) -> None:
        """Let what `stream` is given from now on begin when the bytes are there; raises if the copy failed."""

    def follow(self, stream: torch.Stream) -> None:
        """The same for somebody who does not read the bytes, and so does not care whether the copy failed."""


class DirectTransfer:
    """One copy: from pinned memory, from a peer, or from pageable memory that the driver stages."""

    __slots__ = ("_arrived", "_source", "_target", "stream")

    def __init__(self, stream: torch.Stream, source: Tensor, target: Tensor) -> None:
        self.stream = stream
        self._source = source
        self._target = target
        self._arrived = torch.Event(device=stream.device)

    def start(self, free: torch.Event) -> None:
        """Copy as soon as the slot is free."""
        self.stream.wait_event(free)
        copy_on(self.stream, self._source, self._target)
        self._arrived.record(self.stream)

    def arrive(self, stream: torch.Stream) -> None:
        """Wait on the stream."""
        stream.wait_event(self._arrived)

    follow = arrive


class Hop:
    """A host buffer between two accelerators that cannot reach each other, one for each slot and donor."""

    __slots__ = ("__weakref__", "buffer", "drained")

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.drained: torch.Event | None = None


class TwoHopTransfer:
    """From a donor to the host, from there to the compute device."""

    __slots__ = ("_arrived", "_hop", "_landed", "_source", "_target", "stream")

    def __init__(self, stream: torch.Stream, source: Tensor, target: Tensor, hop: Hop) -> None:
        self.stream = stream
        self._source = source
        self._target = target
        self._hop = hop
        self._landed = torch.Event(device=source.device)
        self._arrived = torch.Event(device=stream.device)

    def start(self, free: torch.Event) -> None:
        """Leave the donor as soon as the buffer is drained, enter the slot as soon as that is free."""
        buffer = self._hop.buffer[: self._source.numel()]
        donor_stream = torch.accelerator.current_stream(self._source.device)
        if self._hop.drained is not None:
            donor_stream.wait_event(self._hop.drained)
        copy_on(donor_stream, self._source, buffer)
        self._landed.record(donor_stream)
        self.stream.wait_event(self._landed)
        self.stream.wait_event(free)
        copy_on(self.stream, buffer, self._target)
        self._arrived.record(self.stream)
        self._hop.drained = self._arrived

    def arrive(self, stream: torch.Stream) -> None:
        """Wait on the stream."""
        stream.wait_event(self._arrived)

    follow = arrive


class Bouncer:
    """A thread that copies pageable memory through a few pinned buffers, so that the host does not stand still."""

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        self.worker = Worker("bounce-copies")
        self._buffers = [(buffer, torch.Event(device=device)) for buffer in buffers]
        self._next = 0

    def copy(self, stream: torch.Stream, source: Tensor, target: Tensor) -> None:
        """Copy piece by piece; on the worker's thread, which waits whenever all buffers are full."""
        size_bytes = source.numel()
        start = 0
        while start < size_bytes:
            buffer, drained = self._buffers[self._next]
            self._next = (self._next + 1) % len(self._buffers)
            end = min(start + buffer.numel(), size_bytes)
            drained.synchronize()
            piece = buffer[: end - start]
            piece.copy_(source[start:end])
            copy_on(stream, piece, target[start:end])
            drained.record(stream)
            start = end


class BouncedTransfer:
    """One copy from memory that could not be pinned."""

    __slots__ = ("_arrived", "_bouncer", "_job", "_source", "_target", "stream")

    def __init__(self, stream: torch.Stream, source: Tensor, target: Tensor, bouncer: Bouncer) -> None:
        self.stream = stream
        self._source = source
        self._target = target
        self._bouncer = bouncer
        self._arrived = torch.Event(device=stream.device)
        self._job: Job | None = None

    def start(self, free: torch.Event) -> None:
        """Hand the copy to the thread."""
        self.stream.wait_event(free)
        self._job = self._bouncer.worker.give(self._copy)

    def _copy(self) -> None:
        try:
            with torch.no_grad():
                self._bouncer.copy(self.stream, self._source, self._target)
        finally:
            # A copy that failed may have been issued in part.
            self._arrived.record(self.stream)

    def arrive(self, stream: torch.Stream) -> None:
        """Wait on the host until the thread has issued the copy, on the stream until the bytes are there."""
        job = self._job
        self.follow(stream)
        if job is not None:
            job.raise_error()

    def follow(self, stream: torch.Stream) -> None:
        """The same, whether or not the thread could do it."""
        if self._job is not None:
            self._job.wait()
            self._job = None
        stream.wait_event(self._arrived)


class StreamGate:
    """Orders copies into one slot against the forwards that read it, by events."""

    __slots__ = ("__weakref__", "_device_index", "_free", "_home", "_reader", "_slot", "_transfers", "_unread")

    def __init__(self, slot: Tensor) -> None:
        self._slot = slot
        self._device_index = slot.device.index
        self._home = torch.accelerator.current_stream(self._device_index)
        self._free = torch.Event(device=slot.device)
        self._transfers: Sequence[StreamTransfer] = ()
        self._unread = False
        self._reader: torch.Stream | None = None
        # The memory may have been somebody else's until now, and its last use still be queued on the current stream.
        self.release()
        self._reader = None

    def fill(self, transfers: Sequence[StreamTransfer]) -> None:
        """Start copies as soon as the slot is free."""
        if self._unread:
            for transfer in transfers:
                for unread in self._transfers:
                    unread.follow(transfer.stream)
        for transfer in transfers:
            transfer.start(self._free)
        self._transfers = transfers
        self._unread = True
        self._reader = None

    def arrive(self) -> float:
        """Let the current stream wait for the copies."""
        stream = torch.accelerator.current_stream(self._device_index)
        for transfer in self._transfers:
            transfer.arrive(stream)
        self._unread = False
        if stream != self._home:
            self._slot.record_stream(stream)
        return 0.0

    def release(self) -> None:
        """The slot is free when the current stream has come this far."""
        stream = torch.accelerator.current_stream(self._device_index)
        if self._reader is not None and self._reader != stream:
            # Another thread's forward read the same bytes on another stream: free means free of both.
            stream.wait_event(self._free)
        self._free.record(stream)
        self._reader = stream
