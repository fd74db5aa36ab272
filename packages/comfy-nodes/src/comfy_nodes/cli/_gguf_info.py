"""`torchspan gguf info`: what a GGUF file says of itself, from its header alone."""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alloc_spec import human_size
from block_discovery import BlockTree, Unit
from comfy_nodes.cli._exit import ExitCode, exits_with
from comfy_nodes.cli._output import heading, table
from comfy_nodes.cli._source import blocks_of_gguf
from gguf_loader import GgufArray, GgufError, GgufHeader, TensorInfo, ValueType, read_header

SHOWN_VALUES = 4
"""Values of an array that are shown."""

SHOWN_CHARACTERS = 80
"""Characters of a text that a table has room for; JSON has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """All tensors of one ggml type.

    Attributes:
        type_name: the ggml name.
        tensors: how many.
        weights: how many numbers they stand for.
        size_bytes: what they take in the file.
    """

    type_name: str
    tensors: int
    weights: int
    size_bytes: int

    @property
    def bits_a_weight(self) -> float:
        """Bits in the file for each weight, block scales included."""
        return 8 * self.size_bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All units whose paths differ in numbers only.

    Attributes:
        path: with a star for each number; empty for the tensors outside of all blocks.
        units: how many.
        tensors: of all of them.
        size_bytes: of all of them.
    """

    path: str
    units: int
    tensors: int
    size_bytes: int


def run(options: argparse.Namespace) -> ExitCode:
    """Describe a GGUF file in tables, or as JSON.

    Raises:
        CommandError: the file cannot be read or is malformed (1).
    """
    file = Path(options.file)
    with exits_with(ExitCode.REFUSED, GgufError, OSError):
        header = read_header(file)
        metadata = _metadata(header) if options.metadata else None
    # A vocabulary comes as a file without tensors.
    tree = blocks_of_gguf(header, file, None) if header.tensors else None
    if options.json:
        print(json.dumps(_document(file, header, tree, metadata), indent=2))
    else:
        _print_tables(file, header, tree, metadata)
    return ExitCode.OK


def shares(header: GgufHeader) -> list[Share]:
    """The quantisation mix, the type with the most bytes first."""
    tensors = list(header.tensors.values())
    mix = [
        _sum_up(name, [tensor for tensor in tensors if tensor.ggml_type.name == name]) for name in header.type_counts()
    ]
    return sorted(mix, key=lambda share: -share.size_bytes)


def _sum_up(name: str, tensors: list[TensorInfo]) -> Share:
    return Share(
        type_name=name,
        tensors=len(tensors),
        weights=sum(math.prod(tensor.shape) for tensor in tensors),
        size_bytes=sum(tensor.size_bytes for tensor in tensors),
    )


def groups(tree: BlockTree) -> list[Group]:
    """The units by the pattern of their paths, in the order of the model."""
    patterns: dict[str, list[Unit]] = {}
    for unit in tree.units:
        patterns.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", unit.path), []).append(unit)
    return [
        Group(
            path=path,
            units=len(units),
            tensors=sum(len(unit.tensors) for unit in units),
            size_bytes=sum(unit.size_bytes for unit in units),
        )
        for path, units in patterns.items()
    ]


def _metadata(header: GgufHeader) -> dict[str, dict[str, Any]]:
    """Every metadata value as JSON has it: scalars with their type, arrays as their length and first values."""
    texts = header.metadata.host_view()
    described: dict[str, dict[str, Any]] = {}
    for key, value in header.metadata.items():
        if isinstance(value, GgufArray):
            first = _first_values(value)
            described[key] = {"type": f"{value.value_type.name}[]", "count": len(value), "first": first}
        else:
            # From the text, in which a FLOAT32 has no more digits than it needs; JSON has no infinities and no NaN.
            text = texts[key]
            plain = isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value))
            described[key] = {
                "type": header.metadata.value_type(key).name,
                "value": text if plain else json.loads(text),
            }
    return described


def _first_values(array: GgufArray) -> list[Any]:
    if array.value_type is ValueType.STRING:
        # Tokens may be any bytes; to be looked at, they need not be text.
        return [data.decode(errors="backslashreplace") for data in array.raw_strings()[:SHOWN_VALUES]]
    first: list[Any] = array.numpy()[:SHOWN_VALUES].tolist()
    return [value if math.isfinite(value) else str(value) for value in first]


def _text_of(header: GgufHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else None


def _document(
    file: Path, header: GgufHeader, tree: BlockTree | None, metadata: dict[str, dict[str, Any]] | None
) -> dict[str, Any]:
    document = {
        "file": str(file),
        "file_bytes": header.stamp.size_bytes,
        "version": header.version,
        "alignment": header.alignment,
        "architecture": _text_of(header, "general.architecture"),
        "name": _text_of(header, "general.name"),
        "tensors": len(header.tensors),
        "types": [
            {
                "type": share.type_name,
                "tensors": share.tensors,
                "weights": share.weights,
                "size_bytes": share.size_bytes,
                "bits_a_weight": share.bits_a_weight,
            }
            for share in shares(header)
        ],
        "prefix": tree.prefix if tree else "",
        "blocks": [
            {"path": group.path, "units": group.units, "tensors": group.tensors, "size_bytes": group.size_bytes}
            for group in (groups(tree) if tree else [])
        ],
        "metadata_count": len(header.metadata),
    }
    return document if metadata is None else {**document, "metadata": metadata}


def _print_tables(
    file: Path, header: GgufHeader, tree: BlockTree | None, metadata: dict[str, dict[str, Any]] | None
) -> None:
    architecture = _text_of(header, "general.architecture")
    name = _text_of(header, "general.name")
    print(f"{file}: {f'architecture {architecture}' if architecture else 'no architecture named'}", end="")
    print(f", named {name!r}" if name else "")
    print(f"GGUF version {header.version}, {human_size(header.stamp.size_bytes)}, tensors at {header.alignment} bytes")
    print(heading("Quantisation mix"))
    print(_mix_table(shares(header)))
    print(heading("Blocks"))
    print(_block_table(tree) if tree else "none: the file has no tensors")
    print(heading("Metadata"))
    if metadata is None:
        print(f"{len(header.metadata)} values; --metadata lists them")
    else:
        print(table(["key", "type", "value"], [_metadata_row(key, entry) for key, entry in metadata.items()], left=3))


def _mix_table(mix: list[Share]) -> str:
    total = Share(
        type_name="together",
        tensors=sum(share.tensors for share in mix),
        weights=sum(share.weights for share in mix),
        size_bytes=sum(share.size_bytes for share in mix),
    )
    rows = [
        [
            share.type_name,
            f"{share.tensors}",
            f"{share.weights:,}",
            human_size(share.size_bytes),
            f"{100 * share.size_bytes / max(total.size_bytes, 1):.1f} %",
            f"{share.bits_a_weight:.2f}",
        ]
        for share in (*mix, total)
    ]
    return table(["type", "tensors", "weights", "bytes", "share", "bits a weight"], rows)


def _block_table(tree: BlockTree) -> str:
    rows = [
        [group.path or "outside of blocks", f"{group.units}", f"{group.tensors}", human_size(group.size_bytes)]
        for group in groups(tree)
    ]
    below = f"under {tree.prefix}\n" if tree.prefix else ""
    return below + table(["layers", "units", "tensors", "bytes"], rows)


def _metadata_row(key: str, entry: dict[str, Any]) -> list[str]:
    if "count" not in entry:
        value = entry["value"]
        return [key, entry["type"], _shortened(value if isinstance(value, str) else json.dumps(value))]
    more = ", ..." if entry["count"] > SHOWN_VALUES else ""
    first = ", ".join(repr(value) for value in entry["first"])
    return [key, entry["type"], _shortened(f"{entry['count']} values: {first}{more}" if first else "no values")]


def _shortened(text: str) -> str:
    """One printable line, as long as a table has room for.

    >>> _shortened("a" + chr(10) + "b"), len(_shortened("x" * 1000))
    ('a b', 80)
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."
