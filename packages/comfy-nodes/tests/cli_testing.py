"""Helpers of the command's tests: safetensors files that are only a header, and the command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ITEM_BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run_torchspan(*arguments: str | Path, folder: Path | None = None) -> Finished:
    """Run the command in a process of its own, as a person would."""
    done = subprocess.run(
        [sys.executable, "-m", "comfy_nodes.cli", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def transformer_shapes(blocks: int, width: int, *, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of `blocks` equal blocks of 12 * `width`**2 elements, and of a little around them."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed.weight": (width, 64), f"{prefix}embed.bias": (width,)}
    for block in range(blocks):
        for name in ("to_q", "to_k", "to_v", "to_out"):
            shapes[f"{prefix}blocks.{block}.attn.{name}.weight"] = (width, width)
        shapes[f"{prefix}blocks.{block}.ff.up.weight"] = (4 * width, width)
        shapes[f"{prefix}blocks.{block}.ff.down.weight"] = (width, 4 * width)
        shapes[f"{prefix}blocks.{block}.norm.weight"] = (width,)
    shapes[f"{prefix}head.weight"] = (64, width)
    return shapes


def write_header(path: Path, shapes: Mapping[str, Sequence[int]], *, dtype: str = "BF16", body: bool = False) -> int:
    """Write the header of a safetensors file, with zeros behind it if `body`; return the bytes that it claims."""
    entries: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        size = ITEM_BYTES[dtype]
        for length in shape:
            size *= length
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        if body:
            # A hole in the file: zeros to every reader, no space on the disk.
            file.truncate(8 + len(header) + offset)
    return offset
