"""The layers of a model as the planner moves them: the host brings weights over by layers, so a layer has one home.

The same rules read a file's header and a loaded model, so that what is planned before loading is what is placed after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from block_discovery import BlockTree, TensorInfo, Unit, discover_names

Sizes = Mapping[str, tuple[Sequence[int], int]]
"""Shape and bytes of each tensor, by its name in the state dict."""

_SCALES = (
    *("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"),
    *("scale_weight", "scale_input", "comfy_quant"),
)
_MOVING = frozenset({"weight", "bias", *_SCALES})
"""What a layer may have besides its weight and still move: it is brought over as one."""


def layer_tree(sizes: Sizes, *, prefix: str, is_castable: Callable[[str], bool] = lambda name: True) -> BlockTree:
    """Units whose "tensors" are whole layers, named by their module.

    A layer can live elsewhere if it has a weight of two or more dimensions, nothing but a weight, a bias and scales,
    and no layers inside. Everything else (norms, parameters between layers) is part of the rest, which always stays
    on the compute device.

    Args:
        sizes: of every tensor.
        prefix: of the names that belong to the model; cut off.
        is_castable: whether the layer of that name, without the prefix, can bring its weights over.

    Raises:
        block_discovery.BlockDiscoveryError: no name has the prefix, or a name is no module path.

    >>> linear = {"weight": ((8, 8), 256), "bias": ((8,), 32)}
    >>> sizes = {f"blocks.{i}.{m}.{p}": size for i in range(3) for m in ("q", "k") for p, size in linear.items()}
    >>> tree = layer_tree({**sizes, "norm.weight": ((8,), 32)}, prefix="")
    >>> [(unit.kind, [(layer.name, layer.size_bytes) for layer in unit.tensors]) for unit in tree.units[2:]]
    [('block', [('blocks.2.q', 288), ('blocks.2.k', 288)]), ('rest', [('norm', 32)])]
    """
    tree = discover_names(sizes, prefix=prefix)
    movable = _movable(tree, is_castable)
    units: list[Unit] = []
    kept: list[TensorInfo] = []
    for unit in tree.units:
        layers = _merged(tensor for tensor in unit.tensors if _module(tensor) in movable and unit.kind != "rest")
        kept += [tensor for tensor in unit.tensors if _module(tensor) not in movable or unit.kind == "rest"]
        if layers:
            units.append(replace(unit, tensors=layers))
    if kept:
        units.append(Unit(path="", class_name="", kind="rest", group=None, tensors=_merged(kept)))
    return replace(tree, units=tuple(units), tied=())


def _movable(tree: BlockTree, is_castable: Callable[[str], bool]) -> set[str]:
    """Modules all of whose tensors are in one unit, and that the host can copy without a change."""
    tied = {name for group in tree.tied for name in group}
    homes: dict[str, set[str]] = {}
    parameters: dict[str, dict[str, TensorInfo]] = {}
    parents: Counter[str] = Counter()
    for unit in tree.units:
        for tensor in unit.tensors:
            module, _, parameter = tensor.name.rpartition(".")
            homes.setdefault(module, set()).add(unit.path)
            parameters.setdefault(module, {})[parameter] = tensor
            parents.update(_ancestors(module))
    return {
        module
        for module, own in parameters.items()
        if module
        and "weight" in own
        and len(own["weight"].shape) > 1
        and own.keys() <= _MOVING
        and not parents[module]
        and len(homes[module]) == 1
        and not any(tensor.name in tied for tensor in own.values())
        and is_castable(module)
    }


def _merged(tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """One entry for each module: the sum of its tensors."""
    sums: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        name = _module(tensor) or tensor.name
        sums[name] = sums.get(name, 0) + tensor.size_bytes
        shapes[name] = max(shapes.get(name, ()), tensor.shape, key=math.prod)
    return tuple(TensorInfo(name=name, size_bytes=size, shape=shapes[name]) for name, size in sums.items())


def _module(tensor: TensorInfo) -> str:
    return tensor.name.rpartition(".")[0]


def _ancestors(module: str) -> Iterable[str]:
    while module:
        module = module.rpartition(".")[0]
        if module:
            yield module
