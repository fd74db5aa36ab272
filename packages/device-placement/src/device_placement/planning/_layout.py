"""From a policy and a number of resident bytes to a home for every tensor: the four policies on one footing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from block_discovery import BlockTree, Unit
from device_placement._errors import InvalidPlanError
from device_placement._plan import Policy, TensorHome, UnitPlacement, check_seconds
from device_placement.planning._fill_in_order import fill_in_order
from device_placement.planning._selection import Movable, Selection, assumed_weight, interleaved
from device_placement.planning._stripe import striped


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of the devices.

    Attributes:
        compute: name of the compute device.
        order: all devices in the user's order, the compute device included.
        amounts: bytes wanted on each donor.
        elastic: the donor that takes all rounding to whole tensors; None without donors.
    """

    compute: str
    order: tuple[str, ...]
    amounts: Mapping[str, int]
    elastic: str | None

    @property
    def donors(self) -> tuple[str, ...]:
        """All devices but the compute device, in the user's order."""
        return tuple(name for name in self.order if name != self.compute)


Layout = Callable[[int], tuple[UnitPlacement, ...]]
"""From bytes of units that may be resident, the rest not counted, to placements that respect them."""


def layout(
    tree: BlockTree, wish: Wish, *, policy: Policy, slots: int, unit_seconds: Mapping[str, float] | None
) -> Layout:
    """Prepare a policy for one model, so that it can be asked for several amounts of resident bytes."""
    units = [unit for unit in tree.units if unit.kind != "rest"]
    homes = _homes(units, wish, policy=policy, slots=slots, unit_seconds=unit_seconds)
    return lambda resident_bytes: _placements(tree, wish.compute, homes(resident_bytes))


def _homes(
    units: Sequence[Unit], wish: Wish, *, policy: Policy, slots: int, unit_seconds: Mapping[str, float] | None
) -> Callable[[int], list[list[str]]]:
    elastic = wish.elastic
    if elastic is None:
        return lambda _: [[wish.compute] * len(unit.tensors) for unit in units]
    if policy == "contiguous":
        return lambda resident: _stretches_of_tensors(units, wish, elastic, resident)
    if policy == "legacy_tail":
        return lambda resident: _stretches_of_units(units, wish, elastic, resident)
    movables = [_movable(unit, unit_seconds) for unit in units]
    selector = striped(movables, slots=slots) if policy == "stripe" else interleaved(movables)
    movable_bytes = sum(unit.size_bytes for unit in units)
    return lambda resident: _chosen(units, wish, elastic, selector(max(0, movable_bytes - resident)))


def _stretches_of_tensors(units: Sequence[Unit], wish: Wish, elastic: str, resident_bytes: int) -> list[list[str]]:
    """One stretch of the model a device, in the user's order, cut between any two tensors."""
    amounts = [resident_bytes if name == wish.compute else wish.amounts[name] for name in wish.order]
    sizes = [tensor.size_bytes for unit in units for tensor in unit.tensors]
    homes = iter(fill_in_order(sizes, amounts, wish.order.index(elastic)))
    return [[wish.order[next(homes)] for _ in unit.tensors] for unit in units]


def _stretches_of_units(units: Sequence[Unit], wish: Wish, elastic: str, resident_bytes: int) -> list[list[str]]:
    """What the ancestor did: one stretch of whole units a device, the devices in alphabetical order.

    ``cpu`` sorts before ``cuda:0``, so the compute device keeps the tail of the model.
    """
    order = sorted(wish.order)
    amounts = [resident_bytes if name == wish.compute else wish.amounts[name] for name in order]
    homes = fill_in_order([unit.size_bytes for unit in units], amounts, order.index(elastic))
    return [[order[home]] * len(unit.tensors) for home, unit in zip(homes, units, strict=True)]


def _chosen(units: Sequence[Unit], wish: Wish, elastic: str, streamed: Selection) -> list[list[str]]:
    """What a policy chose to stream, handed to the donors in order along the model."""
    chosen = [(index, tensor) for index, tensors in enumerate(streamed) for tensor in sorted(tensors)]
    sizes = [units[index].tensors[tensor].size_bytes for index, tensor in chosen]
    donors = wish.donors
    filled = fill_in_order(sizes, [wish.amounts[name] for name in donors], donors.index(elastic))
    homes = [[wish.compute] * len(unit.tensors) for unit in units]
    for (index, tensor), home in zip(chosen, filled, strict=True):
        homes[index][tensor] = donors[home]
    return homes


def _movable(unit: Unit, unit_seconds: Mapping[str, float] | None) -> Movable:
    sizes = tuple(tensor.size_bytes for tensor in unit.tensors)
    if unit_seconds is None:
        return Movable(sizes=sizes, weight=assumed_weight(unit.kind, is_embedding=unit.is_embedding))
    if unit.path not in unit_seconds:
        raise InvalidPlanError(f"unit_seconds does not know {unit.path!r}; give every unit its seconds, or none")
    check_seconds(f"unit_seconds[{unit.path!r}]", unit_seconds[unit.path])
    return Movable(sizes=sizes, weight=unit_seconds[unit.path])


def _placements(tree: BlockTree, compute: str, homes: Sequence[Sequence[str]]) -> tuple[UnitPlacement, ...]:
    """Placements of all units of a tree: the rest on the compute device, the others as given, in order."""
    given = iter(homes)
    placed = []
    for unit in tree.units:
        devices = [compute] * len(unit.tensors) if unit.kind == "rest" else next(given)
        tensors = zip(unit.tensors, devices, strict=True)
        placed.append(
            UnitPlacement(
                path=unit.path,
                class_name=unit.class_name,
                kind=unit.kind,
                homes=tuple(TensorHome(name=t.name, size_bytes=t.size_bytes, device=device) for t, device in tensors),
                is_embedding=unit.is_embedding,
            )
        )
    return tuple(placed)
