"""Which tensors of a module share memory: the same bytes are stored, charged and moved once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch


def size_bytes(tensor: torch.Tensor) -> int:
    """Bytes the stored tensor occupies, the packed bytes for a wrapper subclass."""
    return sum([plain.nbytes for plain in _plain_tensors(tensor)])


def shared_groups(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, ...]]:
    """Groups of at least two names whose tensors overlap in memory; works on the meta device as well.

    Tensors that are disjoint views of one buffer (a memory-mapped file, a flat buffer) are not shared.
    """
    by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        for plain in _plain_tensors(tensor):
            # The address of the storage object: data_ptr() is 0 for every tensor on the meta device.
            by_storage.setdefault(plain.untyped_storage()._cdata, []).append((name, plain))
    groups: list[set[str]] = []
    for owners in by_storage.values():
        if len(owners) > 1:
            ranges = sorted((*_byte_range(plain), name) for name, plain in owners if plain.numel())
            groups.extend(_overlapping(ranges))
    if not groups:
        return []
    order = {name: position for position, name in enumerate(tensors)}
    ordered = (tuple(sorted(group, key=order.__getitem__)) for group in _joined(groups))
    return sorted(ordered, key=lambda group: order[group[0]])


def _plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself, or the plain tensors that a wrapper subclass (a quantised weight) is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [plain for name in names for plain in _plain_tensors(getattr(tensor, name))]


def _byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and last byte + 1 that the tensor can touch in its storage."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((int(size) - 1) * int(stride) for size, stride in steps)
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + extent) * tensor.element_size()


def _overlapping(ranges: list[tuple[int, int, str]]) -> Iterator[set[str]]:
    """Sets of names whose ranges overlap, from ranges sorted by their start."""
    names: set[str] = set()
    end = 0
    for start, stop, name in ranges:
        if start >= end:
            if len(names) > 1:
                yield names
            names = set()
        names.add(name)
        end = max(end, stop)
    if len(names) > 1:
        yield names


def _joined(groups: list[set[str]]) -> list[set[str]]:
    """The groups, those with a common name joined: a wrapper subclass has several storages."""
    merged: list[set[str]] = []
    for group in groups:
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group] + [group.union(*touching)]
    return merged
