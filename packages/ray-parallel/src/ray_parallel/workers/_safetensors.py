"""The layout of safetensors files, single or sharded; the library checks the header, here only offsets are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ._errors import WeightsError
from ._layout import TensorSlot, WeightsLayout

_LENGTH_BYTES = 8
_INDEX_SUFFIX = ".safetensors.index.json"
_PACKED = "F4"
"""Counted singly in a header, while torch packs two elements into one."""

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    _PACKED: "float4_e2m1fn_x2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


def read_layout(path: str | os.PathLike[str]) -> tuple[tuple[Path, ...], WeightsLayout]:
    """Read where the tensors of a checkpoint lie; no weight is read.

    Args:
        path: a safetensors file, or the ``*.safetensors.index.json`` of a sharded one.

    Returns:
        The files, and the layout whose parts they are.

    Raises:
        WeightsError: a file is not safetensors, is cut off, or holds a type that torch does not have.
        OSError: a file cannot be opened.
    """
    path = Path(path)
    files = _shards(path) if path.name.endswith(_INDEX_SUFFIX) else (path,)
    slots: list[TensorSlot] = []
    metadata: dict[str, str] = {}
    for part, file in enumerate(files):
        found, notes = _read_file(file, part)
        slots += found
        metadata |= notes
    sizes = tuple(file.stat().st_size for file in files)
    return files, WeightsLayout(slots=tuple(slots), part_bytes=sizes, metadata=metadata)


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = list(dict.fromkeys(weight_map.values()))
        if not names or not all(isinstance(name, str) and name and "\0" not in name for name in names):
            raise TypeError(f"it names {names or 'none'}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(str(index), f"is no index of shards ({error})", "name the index, or download it") from error
    outside = [name for name in names if name == ".." or Path(name).name != name]
    if outside:
        raise WeightsError(str(index), f"names {outside[0]!r}, which is not beside it", "keep the shards in its folder")
    return tuple(index.parent / name for name in names)


def _read_file(path: Path, part: int) -> tuple[list[TensorSlot], dict[str, str]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        try:
            with safe_open(path, framework="pt") as checked:
                metadata = checked.metadata() or {}
        except SafetensorError as error:
            raise WeightsError(
                str(path), f"is no complete safetensors file ({error})", "name the right file, or download it again"
            ) from error
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    begin = _LENGTH_BYTES + length
    return [_slot(path, name, entry, part, begin) for name, entry in entries], metadata


def _slot(path: Path, name: str, entry: dict[str, object], part: int, begin: int) -> TensorSlot:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    assert isinstance(dtype, str)
    assert isinstance(shape, list)
    assert isinstance(offsets, list)
    if dtype not in _TORCH_NAMES:
        raise WeightsError(
            f"{path}: tensor {name!r}", f"has the type {dtype}, which torch does not have", "convert the file"
        )
    if dtype == _PACKED and shape:
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorSlot(
        name=name,
        dtype=_TORCH_NAMES[dtype],
        shape=tuple(shape),
        size_bytes=offsets[1] - offsets[0],
        part=part,
        offset_bytes=begin + offsets[0],
    )
