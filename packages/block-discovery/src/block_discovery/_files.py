"""Discovery straight from a checkpoint's header, without a byte of weights."""

from __future__ import annotations

import os

from block_discovery._names import tree_from_tensors
from block_discovery._safetensors import read_safetensors_header
from block_discovery._shards import read_safetensors_index
from block_discovery._tree import BlockTree


def discover_file(
    path: str | os.PathLike[str], *, prefix: str | None = None, max_unit_fraction: float = 0.125
) -> BlockTree:
    """Find the units of the model in a safetensors file, or in the shards of a ``.safetensors.index.json``.

    Args:
        path: the file; its weights may be missing (`read_safetensors_header` says how many bytes are).
        prefix: cut off from the names, as in `discover_names`; what all names share when None. A checkpoint of several
            models shares nothing: pass the prefix of the wanted one.
        max_unit_fraction: as in `discover_names`.

    Returns:
        The units; `BlockTree.prefix` says what was cut off.

    Raises:
        HeaderError: the file or index is malformed.
        ModelWithoutParametersError: the file has no tensors, or none whose name starts with the prefix.
        InvalidTensorError: a name is no module path.
        InvalidFractionError: `max_unit_fraction` is not in (0, 1].
        OSError: the file cannot be opened.
    """
    read = read_safetensors_index if os.fspath(path).endswith(".json") else read_safetensors_header
    return tree_from_tensors(read(path).tensors.values(), prefix=prefix, max_unit_fraction=max_unit_fraction)
