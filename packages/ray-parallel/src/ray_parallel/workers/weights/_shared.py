"""`SharedWeights`: one copy of a model's weights for all workers of a machine, by whichever transport there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ray_parallel.workers.weights._errors import WeightsError
from ray_parallel.workers.weights._files import FileStamp, map_file, stamp
from ray_parallel.workers.weights._layout import TensorSlot, WeightsLayout
from ray_parallel.workers.weights._open import OpenWeights
from ray_parallel.workers.weights._plain import Plain
from ray_parallel.workers.weights._safetensors import read_layout
from ray_parallel.workers.weights._sharing import Mode
from ray_parallel.workers.weights._store import StoreRoom, describe_tensors, get_parts, put_files, put_parts

if TYPE_CHECKING:
    from ray import ObjectRef

    from ray_parallel.workers.weights._store import Bytes


class SharedWeights:
    """Weights that any number of processes open without copying them.

    A file is the best transport: it costs no time, its pages can be given up when memory is short, and a worker that
    writes to a tensor changes only its own copy. It must not change while it is used: a changed one is refused when it
    is opened, and a worker ends (SIGBUS) when a mapped file is cut off. Ray's object store is for what has no file
    (merged or converted weights) and for machines that do not see it. Both look the same from the outside.

    Make one with `from_file` or `from_tensors`. A `WorkerGroup` asks its workers whether all see the files, and ships
    them through the store when one does not.

    Attributes:
        layout: names, types, shapes and notes of the tensors.
        files: the files that hold them; empty for weights without a file.
    """

    def __init__(self, layout: WeightsLayout, *, files: tuple[FileStamp, ...] = ()) -> None:
        self.layout = layout
        self.files = files
        self._refs: list[ObjectRef[list[Bytes]]] = []
        self._room: StoreRoom | None = None
        self._taken_bytes = 0
        self._closed = False

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        slots: Sequence[TensorSlot] | None = None,
        metadata: Mapping[str, Plain] | None = None,
    ) -> SharedWeights:
        """Share a checkpoint by its file.

        Args:
            path: a safetensors file or the index of a sharded one; with `slots`, a file of any format.
            slots: where the tensors of another format lie. Of a GGUF file each tensor is ``uint8`` bytes with a note
                that says its type and shape, for whoever dequantises them in the worker.
            metadata: what goes with `slots`; safetensors bring their own.

        Raises:
            WeightsError: the file is malformed or no regular file, or the slots do not fit it.
            OSError: it cannot be read.
        """
        if slots is None:
            files, layout = read_layout(path)
            return cls(layout, files=files)
        file = stamp(path)
        layout = WeightsLayout(slots=tuple(slots), part_bytes=(file.size_bytes,), metadata=dict(metadata or {}))
        return cls(layout, files=(file,))

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        *,
        room: StoreRoom,
        notes: Mapping[str, Mapping[str, Plain]] | None = None,
        metadata: Mapping[str, Plain] | None = None,
    ) -> SharedWeights:
        """Share tensors through the object store, which gets the one copy; let go of your own afterwards.

        Args:
            tensors: dense tensors of any type and device; tied ones stay tied.
            room: `Cluster.room`, which knows what fits.
            notes: plain data by name of tensor.
            metadata: plain data about the whole.

        Raises:
            WeightsError: something is not a plain tensor.
            ObjectStoreSizeError: the store is too small; nothing was put into it.
        """
        layout, parts = describe_tensors(tensors, notes or {}, metadata or {})
        weights = cls(layout)
        weights._put(room, lambda: put_parts(parts))
        return weights

    @property
    def mode(self) -> Mode:
        """``"file"`` or ``"store"``."""
        return "store" if self._refs or not self.files else "file"

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.layout.size_bytes

    def are_here(self) -> bool:
        """Whether this machine sees all files; True for weights without one."""
        return all(file.is_here() for file in self.files)

    def ship(self, room: StoreRoom) -> None:
        """Put the bytes of the files into the object store, for machines that do not see them.

        Raises:
            ObjectStoreSizeError: the store is too small; nothing was put into it.
        """
        if self.mode == "file":
            self._put(room, lambda: put_files(self.files))

    def open(self, *, protected: bool = False) -> OpenWeights:
        """Open the weights in this process: milliseconds, whatever their size.

        Args:
            protected: make pages of the store read only, so that a write ends this process instead of changing the
                results of others. Workers do so; a process that has more to lose relies on `require_unwritten`.

        Raises:
            WeightsError: they were closed, or a file is no longer the one that was shared.
        """
        if self._closed:
            raise WeightsError("the shared weights", "were closed", "share them again")
        if self.mode == "file":
            return OpenWeights("file", self.layout, [map_file(file) for file in self.files])
        parts, protected_bytes = get_parts(self._refs, protected=protected)
        return OpenWeights("store", self.layout, parts, protected_bytes=protected_bytes)

    def close(self) -> None:
        """Let go of the store's memory; it is free once no worker holds a tensor of it. Files need no closing."""
        self._refs = []
        if self._room is not None:
            self._room.give(self._taken_bytes)
            self._room = None
        self._closed = True

    def __enter__(self) -> SharedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        # Another process reads the weights; the room in the store stays the business of the one that put them.
        return {"layout": self.layout, "files": self.files, "refs": self._refs, "closed": self._closed}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(
            layout=state["layout"], files=state["files"], _refs=state["refs"], _closed=state["closed"],
            _room=None, _taken_bytes=0,
        )  # fmt: skip

    def _put(self, room: StoreRoom, put: Callable[[], list[ObjectRef[list[Bytes]]]]) -> None:
        size = sum(self.layout.part_bytes)
        room.take(size)
        try:
            self._refs = put()
        except BaseException:
            room.give(size)
            raise
        self._room, self._taken_bytes = room, size
