"""A checkpoint in several safetensors files, read as if it were one."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from block_discovery._errors import HeaderError
from block_discovery._safetensors import SafetensorsHeader, read_safetensors_header
from block_discovery._tree import TensorInfo


def read_safetensors_index(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read the headers of all shards that a ``*.safetensors.index.json`` lists, as if they were one file.

    Args:
        path: the index; the shards lie in its folder.

    Raises:
        HeaderError: the index is malformed, names a file outside its folder or one that does not exist, disagrees with
            a shard about a tensor, or a shard's header is malformed.
        OSError: the index or a shard cannot be opened.
    """
    path = Path(path)
    weight_map = _weight_map(path)
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
    )


def _weight_map(path: Path) -> dict[str, str]:
    """The shard of every tensor, as the index says."""
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HeaderError(
            f"the index is not valid JSON ({error})", subject=str(path), remedy="download the index again"
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
                f"the file {shard!r:.80} does not lie in the folder of the index",
                subject=f"{path}: tensor {name!r}",
                remedy="an index names files in its own folder",
            )
    return weight_map


def _is_beside(shard: str) -> bool:
    """Whether the name stays in the folder of the index on every system."""
    return shard == PurePosixPath(shard).name and not set(shard) & set("\\:\0") and shard not in ("", ".", "..")


def _read_shard(index: Path, shard: str) -> SafetensorsHeader:
    path = index.parent / shard
    if not path.is_file():
        raise HeaderError(
            f"the shard {shard} does not exist",
            subject=str(index),
            remedy="download every file of the checkpoint into one folder",
        )
    return read_safetensors_header(path)


def _disagreement(path: Path, name: str, reason: str) -> HeaderError:
    return HeaderError(
        reason,
        subject=f"{path}: tensor {name!r}",
        remedy="the index and the shards are of different versions; download them together",
    )


def _common_metadata(headers: list[SafetensorsHeader]) -> dict[str, str]:
    first, *others = headers
    return {
        key: text for key, text in first.metadata.items() if all(header.metadata.get(key) == text for header in others)
    }
