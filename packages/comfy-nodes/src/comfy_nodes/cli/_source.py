"""Where a model comes from: the header of a file of any kind, read into blocks, the same for every command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alloc_spec import human_size
from block_discovery import (
    BlockDiscoveryError,
    BlockTree,
    ModelWithoutParametersError,
    discover_file,
    discover_names,
    read_safetensors_header,
    read_safetensors_index,
)
from comfy_nodes.cli._exit import CommandError, ExitCode, exits_with

if TYPE_CHECKING:
    from gguf_loader import GgufHeader

GGUF_SUFFIX = ".gguf"
PACKED_METADATA = "torchspan.packed"
"""The entry that the metadata of a packed safetensors file have; see `device_placement.packed`."""


def read_model(file: Path, prefix: str | None) -> tuple[BlockTree, list[str]]:
    """Find the blocks of the model in a file; no weight is read.

    Args:
        file: ``*.gguf``, ``*.safetensors``, or the ``*.safetensors.index.json`` of a sharded model.
        prefix: only tensors under it, which is cut off; what all names share when None.

    Returns:
        The blocks, with packed bytes where the file is quantised, and sentences about what is wrong with the file
        without standing in the way of a plan.

    Raises:
        CommandError: the file cannot be read, is malformed, or has no tensors under the prefix (1).
    """
    if file.suffix.lower() == GGUF_SUFFIX:
        return _read_gguf(file, prefix), []
    return _read_safetensors(file, prefix)


def _read_gguf(file: Path, prefix: str | None) -> BlockTree:
    # Only here: whoever has no GGUF file does not wait for its reader.
    from gguf_loader import GgufError, read_header

    with exits_with(ExitCode.REFUSED, GgufError, OSError):
        header = read_header(file)
    return blocks_of_gguf(header, file, prefix)


def blocks_of_gguf(header: GgufHeader, file: Path, prefix: str | None) -> BlockTree:
    """Find the blocks of the model that a GGUF header describes.

    Raises:
        CommandError: it describes no tensors under the prefix, or a name that is no module path (1).
    """
    try:
        return discover_names(header.sizes(), prefix=prefix)
    except BlockDiscoveryError as error:
        raise CommandError(f"{file}: {error}") from error


def _read_safetensors(file: Path, prefix: str | None) -> tuple[BlockTree, list[str]]:
    read = read_safetensors_index if file.suffix == ".json" else read_safetensors_header
    with exits_with(ExitCode.REFUSED, BlockDiscoveryError, OSError):
        header = read(file)
        try:
            packed = PACKED_METADATA in header.metadata
            tree = _blocks_of_packed(file, prefix) if packed else discover_file(file, prefix=prefix)
        except ModelWithoutParametersError as error:
            raise CommandError(f"{file}: {error}") from error
    if not header.missing_bytes:
        return tree, []
    return tree, [
        f"{file} ends {human_size(header.missing_bytes)} before its header says; "
        "enough for a plan, but the model cannot be loaded from it"
    ]


def _blocks_of_packed(file: Path, prefix: str | None) -> BlockTree:
    """The blocks of a packed file by the names of its source, with packed bytes."""
    # Only here: it needs torch.
    from device_placement.packed import PackedError, PackedFile

    with exits_with(ExitCode.REFUSED, PackedError), PackedFile(file) as packed:
        return discover_names(packed.sizes, prefix=prefix)
