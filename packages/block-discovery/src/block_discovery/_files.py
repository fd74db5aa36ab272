"""Discovery straight from a checkpoint's header, without a byte of weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import takewhile

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
        prefix: cut off from the names, as in `discover_names`. None cuts off the leading components that *all* names
            share, such as ``model.diffusion_model.``, up to the first that is a numbered list. A checkpoint of several
            models shares none: pass the prefix of the wanted one.
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
    tensors = read(path).tensors
    if prefix is None:
        prefix = _shared_prefix(tensors)
    return tree_from_tensors(tensors.values(), prefix=prefix, max_unit_fraction=max_unit_fraction)


def _shared_prefix(names: Iterable[str]) -> str:
    """Leading components that all names share, with the dot, up to the first that is a numbered list or a layer."""
    modules = [name.split(".")[:-1] for name in names]
    pairs = zip(min(modules, default=[]), max(modules, default=[]), strict=False)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    below = {module[len(shared)] for module in modules if len(module) > len(shared)}
    is_number = [*map(str.isdecimal, shared), all(map(str.isdecimal, below))]
    depth = is_number.index(True) - 1 if True in is_number else len(shared)
    return "".join(f"{component}." for component in shared[: max(depth, 0)])
