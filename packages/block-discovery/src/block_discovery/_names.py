"""Discovery from names and sizes alone: what a checkpoint's header contains, before a byte of weights is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from block_discovery._cut import cut
from block_discovery._dtypes import element_bits, torch_name
from block_discovery._errors import InvalidTensorError, ModelWithoutParametersError
from block_discovery._parts import Part, finish
from block_discovery._tree import BlockTree, TensorInfo
from block_discovery._units import tree_of

if TYPE_CHECKING:
    import torch

MAX_DEPTH = 100
"""Components of a name; a module path of a real model has about ten, and the walk over the parts recurses."""

TABLE_ASPECT = 3
"""Rows of a vocabulary for each column, at least: a projection is rarely that tall."""


def discover_names(
    sizes: Mapping[str, tuple[Sequence[int], torch.dtype | str | int]],
    *,
    prefix: str | None = "",
    max_unit_fraction: float = 0.125,
) -> BlockTree:
    """Find the units of a model that is known by the names and sizes of its tensors only.

    The cut is the one that `discover` makes on the module, as far as names tell it. They do not tell which modules have
    a forward of their own (nn.Sequential has one, nn.ModuleList has none), which tensors share memory, and which
    buffers the module creates itself. Classes are unknown; a lookup table is recognised by its name and shape.

    Args:
        sizes: for each tensor its shape and its element type (torch's or safetensors' name, or a torch.dtype) or, for
            packed tensors, its size in bytes.
        prefix: only names that start with it count, and it is cut off: paths and names are those of the module that
            the part of the checkpoint is loaded into. Write the dot: ``"model.diffusion_model."``. None cuts off the
            leading components that *all* names share, up to the first that is a numbered list.
        max_unit_fraction: share of the model, in (0, 1], above which a block that consists of smaller blocks is cut
            into those.

    Returns:
        The units, in the order of the names except that ``blocks.2`` comes before ``blocks.10``.

    Raises:
        ModelWithoutParametersError: no name starts with the prefix.
        InvalidTensorError: a negative or overflowing size, an unknown element type, or a name that is no module path.
        InvalidFractionError: `max_unit_fraction` is not in (0, 1].

    Examples:
        >>> sizes = {f"blocks.{i}.{name}.weight": ((64, 64), "BF16") for i in range(3) for name in ("attn", "mlp")}
        >>> tree = discover_names({**sizes, "final.weight": ((64, 64), 4096)})
        >>> [(unit.path, unit.size_bytes) for unit in tree.units]
        [('blocks.0', 16384), ('blocks.1', 16384), ('blocks.2', 16384), ('final', 4096)]
    """
    infos = [_describe(name, *size) for name, size in sizes.items() if prefix is None or name.startswith(prefix)]
    return tree_from_tensors(infos, prefix=prefix, max_unit_fraction=max_unit_fraction)


def tree_from_tensors(tensors: Collection[TensorInfo], *, prefix: str | None, max_unit_fraction: float) -> BlockTree:
    """As `discover_names`, on tensors already described."""
    if prefix is None:
        prefix = _shared_prefix([tensor.name for tensor in tensors])
    mine = [_without(prefix, tensor) for tensor in tensors if tensor.name.startswith(prefix)]
    if not mine:
        raise ModelWithoutParametersError(
            f"no tensor name starts with {prefix!r}" if prefix else "no tensors",
            subject="names",
            remedy="pass a prefix that occurs, or none" if prefix else "pass the names and sizes of a model",
        )
    root = finish(_grow(mine))
    result = cut(root, model_bytes=root.size_bytes, max_unit_fraction=max_unit_fraction)
    return tree_of(result, [tensor.name for tensor in mine], "names", prefix=prefix)


def _shared_prefix(names: Iterable[str]) -> str:
    """Leading components that all names share, with the dot, up to the first that is a numbered list or a layer."""
    modules = [name.split(".")[:-1] for name in names]
    pairs = zip(min(modules, default=[]), max(modules, default=[]), strict=False)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    below = {module[len(shared)] for module in modules if len(module) > len(shared)}
    is_number = [*map(str.isdecimal, shared), all(map(str.isdecimal, below))]
    depth = is_number.index(True) - 1 if True in is_number else len(shared)
    return "".join(f"{component}." for component in shared[: max(depth, 0)])


def _describe(name: str, shape: Sequence[int], dtype: torch.dtype | str | int) -> TensorInfo:
    if any(size < 0 for size in shape):
        raise InvalidTensorError(
            f"has the shape {list(shape)}", subject=f"tensor {name!r}", remedy="sizes are 0 or more"
        )
    if isinstance(dtype, int):
        return TensorInfo(name=name, size_bytes=dtype, shape=tuple(shape))
    bits = element_bits(dtype)
    if bits is None:
        raise InvalidTensorError(
            f"has the unknown element type {dtype!r}",
            subject=f"tensor {name!r}",
            remedy="name it as torch or safetensors does, or give its size in bytes instead",
        )
    if math.prod(shape) * bits % 8:
        raise InvalidTensorError(
            f"has {math.prod(shape)} elements of {dtype}, no whole number of bytes",
            subject=f"tensor {name!r}",
            remedy="give its size in bytes instead",
        )
    return TensorInfo(name=name, size_bytes=math.prod(shape) * bits // 8, shape=tuple(shape), dtype=torch_name(dtype))


def _without(prefix: str, tensor: TensorInfo) -> TensorInfo:
    if not prefix:
        return tensor
    return TensorInfo(
        name=tensor.name[len(prefix) :],
        size_bytes=tensor.size_bytes,
        shape=tensor.shape,
        dtype=tensor.dtype,
        role=tensor.role,
    )


def _grow(tensors: Iterable[TensorInfo]) -> Part:
    """The parts that the dotted names describe; numbered children in the order of their numbers."""
    parts = {"": Part("", "")}
    for tensor in tensors:
        path = tensor.name.rpartition(".")[0]
        components = tensor.name.split(".")
        if not all(components):
            raise InvalidTensorError(
                "has an empty component in its name",
                subject=f"tensor {tensor.name[:60]!r}",
                remedy="names are dotted module paths",
            )
        if len(components) > MAX_DEPTH:
            raise InvalidTensorError(
                f"has more than {MAX_DEPTH} components in its name",
                subject=f"tensor {tensor.name[:60]!r}...",
                remedy="names are dotted module paths",
            )
        _part_at(path, parts).tensors.append(tensor)
    for part in parts.values():
        if all(child.name.isdecimal() for child in part.children):
            part.children.sort(key=lambda child: (len(child.name), child.name))
        part.is_embedding = _looks_like_a_table(part)
    return parts[""]


def _part_at(path: str, parts: dict[str, Part]) -> Part:
    part = parts.get(path)
    if part is None:
        parent, _, name = path.rpartition(".")
        part = parts[path] = Part(path, name)
        _part_at(parent, parts).children.append(part)
    return part


def _looks_like_a_table(part: Part) -> bool:
    """Whether the only tensor is a tall matrix named ``weight`` in a part named after an embedding."""
    if part.children or len(part.tensors) != 1 or "emb" not in part.name.lower():
        return False
    (tensor,) = part.tensors
    return (
        tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.shape[0] >= TABLE_ASPECT * tensor.shape[1]
    )
