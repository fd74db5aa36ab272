"""A checkpoint in several safetensors files, read as if it were one."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from block_discovery._errors import HeaderError, InvalidJsonError
from block_discovery._json import parse_json
from block_discovery._quoting import quoted
from block_discovery._regular import FileStamp, open_regular, stamp_of
from block_discovery._safetensors import (
    MAX_HEADER_BYTES,
    SafetensorsHeader,
    read_safetensors_header,
    require_few_tensors,
)
from block_discovery._tree import TensorInfo


def read_safetensors_index(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read the headers of all shards that a ``*.safetensors.index.json`` lists, as if they were one file.

    Args:
        path: the index; the shards lie in its folder.

    Raises:
        HeaderError: the index is malformed, names a file outside its folder or one that does not exist, disagrees with
            a shard about a tensor, or a shard's header is malformed.
        NotRegularFileError: the index or a shard is a folder, a pipe or a device.
        OSError: the index or a shard cannot be opened.
    """
    path = Path(path)
    weight_map, stamp = _weight_map(path)
    require_few_tensors(path, len(weight_map))
    headers = {shard: _read_shard(path, shard) for shard in dict.fromkeys(weight_map.values())}
    tensors: dict[str, TensorInfo] = {}
    for shard, header in headers.items():
        for name, tensor in header.tensors.items():
            if weight_map.get(name) != shard:
                listed = f"lists it in {weight_map[name]}" if name in weight_map else "does not list it"
                raise _disagreement(path, name, f"{shard} holds it, the index {listed}")
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors:
            raise _disagreement(path, name, f"the index lists it in {shard}, which does not hold it")
    return SafetensorsHeader(
        path=path,
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(_common_metadata([*headers.values()])),
        data_bytes=sum(header.data_bytes for header in headers.values()),
        missing_bytes=sum(header.missing_bytes for header in headers.values()),
        stamp=stamp,
        shards=tuple(headers.values()),
    )


def _weight_map(path: Path) -> tuple[dict[str, str], FileStamp]:
    """The shard of every tensor, as the index says, and the identity of the index."""
    with open_regular(path) as file:
        stamp = stamp_of(file)
        raw = file.read(MAX_HEADER_BYTES + 1)
    if len(raw) > MAX_HEADER_BYTES:
        raise HeaderError(
            f"the file has {stamp.size_bytes} bytes, above the limit of {MAX_HEADER_BYTES} for an index",
            subject=str(path),
            remedy="pass the .safetensors.index.json of a sharded checkpoint",
        )
    try:
        index = parse_json(raw)
    except InvalidJsonError as error:
        raise HeaderError(
            f"the index is {error.reason}", subject=str(path), remedy="download the index again"
        ) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise HeaderError(
            "there is no weight_map that maps tensors to files",
            subject=str(path),
            remedy="pass the .safetensors.index.json of a sharded checkpoint, or the .safetensors file itself",
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_beside(shard):
            raise HeaderError(
                f"the file {quoted(shard)} does not lie in the folder of the index",
                subject=f"{path}: tensor {quoted(name)}",
                remedy="an index names files in its own folder",
            )
    return weight_map, stamp


def _is_beside(shard: str) -> bool:
    """Whether the name stays in the folder of the index on every system."""
    return shard == PurePosixPath(shard).name and not set(shard) & set("\\:\0") and shard not in ("", ".", "..")


def _read_shard(index: Path, shard: str) -> SafetensorsHeader:
    path = index.parent / shard
    if not path.exists():
        raise HeaderError(
            f"the shard {shard} does not exist",
            subject=str(index),
            remedy="download every file of the checkpoint into one folder",
        )
    return read_safetensors_header(path)


def _disagreement(path: Path, name: str, reason: str) -> HeaderError:
    return HeaderError(
        reason,
        subject=f"{path}: tensor {quoted(name)}",
        remedy="the index and the shards are of different versions; download them together",
    )


def _common_metadata(headers: list[SafetensorsHeader]) -> dict[str, str]:
    first, *others = headers
    return {
        key: text for key, text in first.metadata.items() if all(header.metadata.get(key) == text for header in others)
    }
