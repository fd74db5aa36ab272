"""Ray's object store as a transport: for weights that have no file, or whose file not every worker sees."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from alloc_spec import human_size
from ray_parallel.workers.weights._errors import ObjectStoreSizeError, WeightsError
from ray_parallel.workers.weights._files import FileStamp, map_file
from ray_parallel.workers.weights._layout import TensorSlot, WeightsLayout
from ray_parallel.workers.weights._plain import Plain, tensor_bytes
from ray_parallel.workers.weights._protect import protect
from ray_parallel.workers.weights._sizes import FILLED_SHARE

if TYPE_CHECKING:
    from ray import ObjectRef

Bytes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]

_CHUNK_BYTES = 256 << 20


class StoreRoom:
    """What is left in the object store for weights, so that a `ray.put` is never answered by spilling to disk.

    Args:
        capacity_bytes: size of the smallest store of the cluster.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Reserve room.

        Raises:
            ObjectStoreSizeError: there is not enough.
        """
        room = int(FILLED_SHARE * self.capacity_bytes) - self.taken_bytes
        if size_bytes > room:
            raise ObjectStoreSizeError(
                what="the weights",
                needed_bytes=size_bytes,
                available_bytes=max(0, room),
                where=f"the object store of {human_size(self.capacity_bytes, rounding='down')}",
                remedy="start the cluster with ray_object_store_gb = 0 and the size of the weights, or load the model "
                "from a file that every worker sees",
            )
        self.taken_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give reserved room back."""
        self.taken_bytes -= size_bytes


def describe_tensors(
    tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Mapping[str, Plain]], metadata: Mapping[str, Plain]
) -> tuple[WeightsLayout, list[torch.Tensor]]:
    """Describe tensors as parts, one for each memory: what is tied stays tied.

    Returns:
        The layout, and the bytes of each part: 1-D uint8 tensors, views wherever a tensor is contiguous on the CPU.

    Raises:
        WeightsError: something is not a plain tensor.
    """
    slots: list[TensorSlot] = []
    parts: list[torch.Tensor] = []
    known: dict[tuple[int, int, torch.device], int] = {}
    for name, tensor in tensors.items():
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
            raise WeightsError(
                f"tensor {name!r}",
                f"is a {type(tensor).__name__} ({tensor.layout}, {tensor.device}), which has no plain bytes",
                "hand over dense tensors; of packed ones the bytes as uint8, with a note that says how to read them",
            )
        as_it_lies = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
        memory = (tensor.data_ptr(), tensor.nbytes, tensor.device)
        part = known.get(memory) if as_it_lies and tensor.nbytes else None
        if part is None:
            part = len(parts)
            parts.append(tensor_bytes(tensor))
            if as_it_lies:
                known[memory] = part
        slots.append(
            TensorSlot(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                size_bytes=tensor.nbytes,
                part=part,
                note=notes.get(name, {}),
            )
        )
    layout = WeightsLayout(
        slots=tuple(slots), part_bytes=tuple(part.numel() for part in parts), metadata=dict(metadata)
    )
    return layout, parts


def put_parts(parts: list[torch.Tensor]) -> list[ObjectRef[list[Bytes]]]:
    """Copy parts into the store, in objects of about 256 MiB; the list is emptied on the way.

    The process that calls this owns the objects, so that a worker that dies loses nothing. An object begins and ends
    with a page that belongs to no part, so that all pages of its parts can be protected.

    Raises:
        WeightsError: this process is connected to no cluster.
    """
    ray = _connected()
    refs: list[ObjectRef[list[Bytes]]] = []
    parts.reverse()
    while parts:
        chunk: list[Bytes] = []
        while parts and (not chunk or sum(array.nbytes for array in chunk) + parts[-1].numel() <= _CHUNK_BYTES):
            chunk.append(parts.pop().numpy())
        refs.append(ray.put([_page(), *chunk, _page()]))
    return refs


def put_files(files: Sequence[FileStamp]) -> list[ObjectRef[list[Bytes]]]:
    """Copy whole files into the store, one object each.

    Raises:
        WeightsError: a file is not what its stamp says, or this process is connected to no cluster.
    """
    ray = _connected()
    return [ray.put([_page(), np.frombuffer(map_file(file), dtype=np.uint8), _page()]) for file in files]


def get_parts(refs: Sequence[ObjectRef[list[Bytes]]], *, protected: bool) -> tuple[list[Bytes], int]:
    """The parts as views of the store, without a copy on the machine that put them.

    Args:
        refs: what `put_parts` or `put_files` returned.
        protected: make their pages read only.

    Returns:
        The parts, and how many bytes are protected.

    Raises:
        WeightsError: their owner is gone, or this process is connected to no cluster.
    """
    ray = _connected()
    from ray.exceptions import ObjectLostError

    try:
        chunks: list[list[Bytes]] = ray.get(list(refs))
    except ObjectLostError as error:
        raise WeightsError(
            "the shared weights", f"are no longer in the object store ({type(error).__name__})", "share them again"
        ) from error
    protected_bytes = sum(map(protect, chunks)) if protected else 0
    return [*itertools.chain.from_iterable(chunk[1:-1] for chunk in chunks)], protected_bytes


def _connected() -> ModuleType:
    """Ray, which without a cluster would start another one that listens to the network."""
    import ray

    if not ray.is_initialized():
        raise WeightsError(
            "the shared weights",
            "have no cluster whose store holds them",
            "start or connect one, and share while it runs",
        )
    return ray


def _page() -> Bytes:
    """A page of padding; a new one each time, since an array that occurs twice is stored once."""
    return np.zeros(mmap.PAGESIZE, dtype=np.uint8)
