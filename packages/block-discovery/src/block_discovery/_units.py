"""From a cut to a tree: units with their tensors, and the rest with everything that is shared between units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from block_discovery._cut import Cut
from block_discovery._parts import Part
from block_discovery._tree import BlockTree, Source, TensorInfo, Unit


@dataclass(frozen=True, slots=True)
class Alias:
    """A second path of a module that is registered twice; `part` is where the walk met it first."""

    path: str
    part: Part


def tree_of(
    result: Cut,
    order: Iterable[str],
    source: Source,
    *,
    tied: Sequence[tuple[str, ...]] = (),
    charged: Iterable[TensorInfo] = (),
    aliases: Iterable[Alias] = (),
    prefix: str = "",
) -> BlockTree:
    """Assemble the tree.

    Args:
        result: the cut.
        order: names of all tensors, as the model lists them.
        source: what the cut was made from.
        tied: groups of tensor names that share memory.
        charged: the one tensor of each tied group that is charged.
        aliases: second paths of modules with tensors.
        prefix: what was cut off from the names.
    """
    moved = _used_outside_their_unit(result, aliases)
    rest = [*result.rest, *charged]
    units = []
    for cut_part in result.units:
        part = cut_part.part
        tensors = tuple(part.all_tensors())
        if moved:
            rest += [tensor for tensor in tensors if tensor.name in moved]
            tensors = tuple(tensor for tensor in tensors if tensor.name not in moved)
        if tensors:
            units.append(
                Unit(
                    path=part.path,
                    class_name=part.class_name,
                    kind=cut_part.kind,
                    group=cut_part.group,
                    tensors=tensors,
                    is_embedding=part.is_embedding,
                )
            )
    if rest:
        position = {name: index for index, name in enumerate(order)}
        rest.sort(key=lambda tensor: position[tensor.name])
        units.append(Unit(path="", class_name="", kind="rest", group=None, tensors=tuple(rest)))
    also_tied = ((name, *others) for name, others in moved.items())
    return BlockTree(units=tuple(units), tied=(*tied, *also_tied), source=source, prefix=prefix)


def _used_outside_their_unit(result: Cut, aliases: Iterable[Alias]) -> dict[str, list[str]]:
    """Tensors of a unit that a second path uses without calling the unit, with their other names.

    A unit brings its bytes when it is called. A module that is registered twice and is a unit, or holds whole units,
    brings them whichever path calls it; a module deep inside a unit does not.
    """
    moved: dict[str, list[str]] = {}
    for alias in aliases:
        first = alias.part.path
        for cut_part in result.units:
            unit = cut_part.part.path
            if first.startswith(unit + ".") and not alias.path.startswith(unit + "."):
                for tensor in alias.part.all_tensors():
                    moved.setdefault(tensor.name, []).append(alias.path + tensor.name[len(first) :])
    return moved
