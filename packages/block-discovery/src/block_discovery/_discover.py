"""Discovery on a module, on any device, the meta device included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from block_discovery._cut import cut
from block_discovery._errors import InvalidTensorError, ModelWithoutParametersError, UninitializedModelError
from block_discovery._parts import Part, finish
from block_discovery._storage import shared_groups, size_bytes
from block_discovery._tree import BlockTree, Role, TensorInfo
from block_discovery._units import Alias, tree_of


@dataclass(slots=True)
class _Inventory:
    """What a walk over the modules meets: tensors by name, parts by the identity of their module."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    infos: dict[str, TensorInfo] = field(default_factory=dict)
    parts: dict[int, Part] = field(default_factory=dict)
    aliases: list[Alias] = field(default_factory=list)


def discover(model: nn.Module, *, max_unit_fraction: float = 0.125) -> BlockTree:
    """Find the units of a module: its repeated blocks, its large single layers, and the rest.

    The cut follows structure and sizes alone; the rules stand in the module `_cut`. Tensors that share memory are
    charged once, to the rest. A module that is registered at several paths is one unit when it is, or contains, whole
    units; a part of a unit that is also used elsewhere belongs to the rest.

    Args:
        model: any module, on any device; no data is read, so the meta device serves as well.
        max_unit_fraction: share of the model, in (0, 1], above which a block that consists of smaller blocks is cut
            into those.

    Returns:
        The units in the order of the model, each tensor and buffer charged exactly once.

    Raises:
        ModelWithoutParametersError: the model has no parameters and no buffers.
        UninitializedModelError: a lazy module has not seen its first input yet.
        InvalidTensorError: a tensor is sparse.
        InvalidFractionError: `max_unit_fraction` is not in (0, 1].

    Examples:
        >>> from torch import nn
        >>> layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8)) for _ in range(3))
        >>> model = nn.ModuleDict({"embed": nn.Embedding(100, 8), "layers": layers, "norm": nn.LayerNorm(8)})
        >>> tree = discover(model)
        >>> [(unit.path, unit.kind, unit.size_bytes) for unit in tree.units]
        ... # doctest: +NORMALIZE_WHITESPACE
        [('embed', 'leaf', 3200), ('layers.0', 'block', 2208), ('layers.1', 'block', 2208), ('layers.2', 'block', 2208),
         ('norm', 'leaf', 64)]
    """
    inventory = _Inventory()
    root = _walk(model, "", "", inventory)
    if not inventory.infos:
        raise ModelWithoutParametersError(
            "has no parameters and no buffers",
            subject=f"model {type(model).__name__}",
            remedy="build its layers first, or pass the module that holds them",
        )
    tied = shared_groups(inventory.tensors)
    charged = [max((inventory.infos[name] for name in group), key=lambda info: info.size_bytes) for group in tied]
    _forget({name for group in tied for name in group}, inventory.parts.values())
    finish(root)
    model_bytes = root.size_bytes + sum(info.size_bytes for info in charged)
    return tree_of(
        cut(root, model_bytes=model_bytes, max_unit_fraction=max_unit_fraction),
        inventory.infos,
        "module",
        tied=tied,
        charged=charged,
        aliases=[alias for alias in inventory.aliases if alias.part.tensors or alias.part.children],
    )


def _walk(module: nn.Module, path: str, name: str, inventory: _Inventory) -> Part:
    part = Part(
        path=path,
        name=name,
        class_name=type(module).__name__,
        callable=_has_forward(module),
        is_embedding=isinstance(module, (nn.Embedding, nn.EmbeddingBag)),
    )
    inventory.parts[id(module)] = part
    prefix = f"{path}." if path else ""
    registries: tuple[tuple[Role, Mapping[str, torch.Tensor | None]], ...] = (
        ("parameter", module._parameters),
        ("buffer", module._buffers),
    )
    for role, registry in registries:
        for key, tensor in registry.items():
            if tensor is not None:
                info = _describe(prefix + key, tensor, role)
                part.tensors.append(info)
                inventory.tensors[info.name] = tensor
                inventory.infos[info.name] = info
    for key, child in module._modules.items():
        if child is None:
            continue
        known = inventory.parts.get(id(child))
        if known is None:
            part.children.append(_walk(child, prefix + key, key, inventory))
        else:
            inventory.aliases.append(Alias(prefix + key, known))
    return part


def _has_forward(module: nn.Module) -> bool:
    """Whether anything can call the module: containers such as nn.ModuleList have no forward."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def _describe(name: str, tensor: torch.Tensor, role: Role) -> TensorInfo:
    if is_lazy(tensor):
        raise UninitializedModelError(
            "has no shape yet", subject=f"tensor {name!r}", remedy="run one forward to materialise the lazy modules"
        )
    if tensor.layout is not torch.strided:
        raise InvalidTensorError(
            f"is stored as {tensor.layout}", subject=f"tensor {name!r}", remedy="make it dense first, by to_dense()"
        )
    return TensorInfo(
        name=name,
        size_bytes=size_bytes(tensor),
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        role=role,
    )


def _forget(names: set[str], parts: Iterable[Part]) -> None:
    """Take the tensors with these names out of the parts that own them."""
    if names:
        for part in parts:
            part.tensors = [info for info in part.tensors if info.name not in names]
