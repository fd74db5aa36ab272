"""Which units to pack: never, always, or as many as make a forward fastest by prediction. Plain data, without torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from alloc_spec import AllocationSpec, NoSpaceError, human_seconds, human_size
from block_discovery import BlockTree, TensorInfo, Unit
from device_placement._errors import BudgetTooSmallError, InvalidPlanError
from device_placement._estimate import Estimate
from device_placement._hardware import Hardware
from device_placement._plan import PlacementPlan, Policy, check_seconds
from device_placement.packed._sizes import is_worth_packing
from device_placement.planning._planner import plan
from device_placement.planning._predict import predict
from device_placement.planning._selection import assumed_weight

Pack = Literal["never", "auto", "always"]

ASSUMED_RATIO = 0.71
"""Packed bytes for each byte of trained bf16 weights, which take 0.70 to 0.74."""

ASSUMED_DECODE_GB_PER_SECOND = 300.0
"""Dense gigabytes a second: 60 % of a copy on a card with 1 TB/s of memory bandwidth. Not measured."""

FIRST_STEPS = 8
"""Numbers of packed units that are tried before the search is refined around the best."""

WORTHWHILE = 0.005
"""More units are packed only for a forward that is this share faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPlan:
    """A plan in which some units are packed, and what speaks for it.

    The sizes of packed tensors are estimates. Pack the model with ``pack_model(model, units=...)``, then plan the tree
    of the packed model.

    Attributes:
        plan: homes of all tensors, packed ones with their estimated bytes.
        estimate: what a forward costs, decoding included.
        units: paths of the packed units.
        dense_bytes: bytes of these units' packed tensors before packing.
        packed_bytes: bytes of the same, packed.
        decode_seconds: time of decoding in one forward, part of the compute time of `estimate`.
        explanation: why, one sentence each.
    """

    plan: PlacementPlan
    estimate: Estimate
    units: tuple[str, ...]
    dense_bytes: int
    packed_bytes: int
    decode_seconds: float
    explanation: tuple[str, ...]


def plan_packed(
    tree: BlockTree,
    allocation: AllocationSpec | str,
    hardware: Hardware,
    *,
    pack: Pack,
    packed_ratio: float | None = None,
    decode_gb_per_second: float | None = None,
    compute_seconds: float | None = None,
    unit_seconds: Mapping[str, float] | None = None,
    policy: Policy = "stripe",
    slots: int = 2,
) -> PackedPlan:
    """Choose the units to pack, and plan the model with them.

    A packed unit sends and stores fewer bytes and decodes its weights in each forward, also where they are resident.
    `auto` predicts a forward for several numbers of packed units, evenly spread over the model, and takes the fastest;
    of those within 0.5 % it takes the one that packs least. Where only a packed model fits, it packs.

    Args:
        tree: the dense model, from a module or a header.
        allocation: as for `plan`; amounts count packed bytes.
        hardware: the machine. While something is packed, the largest dense tensor is kept free on the compute device.
        pack: ``"never"``, ``"auto"`` or ``"always"``.
        packed_ratio: packed bytes for each dense byte, where known; else 0.71 is assumed.
        decode_gb_per_second: dense GB (1e9 bytes) a second that the compute device decodes, where measured; else 300
            is assumed, and the explanation says so.
        compute_seconds: time of a forward with all weights resident and dense; ``"auto"`` needs it or `unit_seconds`.
        unit_seconds: the same for each unit by path.
        policy: as for `plan`.
        slots: as for `plan`.

    Raises:
        InvalidPlanError: an argument is out of range, or ``"auto"`` does not know the time of a forward.
        PlacementError: as `plan` and `predict` do.
        alloc_spec.AllocSpecError: the allocation cannot be read or resolved.
    """
    if pack not in get_args(Pack):
        raise InvalidPlanError(f"unknown pack {pack!r}; choose one of {', '.join(get_args(Pack))}")
    if pack == "auto" and compute_seconds is None and unit_seconds is None:
        raise InvalidPlanError(
            "pack 'auto' needs the seconds of a forward with all weights resident, to weigh decoding against the link; "
            "pass compute_seconds, or choose 'never' or 'always'"
        )
    search = _Search(
        tree=tree,
        allocation=allocation,
        hardware=hardware,
        ratio=_checked("packed_ratio", ASSUMED_RATIO if packed_ratio is None else packed_ratio, most=1.5),
        decode_gb_per_second=_checked(
            "decode_gb_per_second",
            ASSUMED_DECODE_GB_PER_SECOND if decode_gb_per_second is None else decode_gb_per_second,
        ),
        seconds=_seconds(tree, compute_seconds, unit_seconds),
        unit_seconds=unit_seconds,
        policy=policy,
        slots=slots,
        candidates=tuple(unit.path for unit in tree.units if _packable_bytes(unit)),
        tried={},
    )
    chosen = _chosen(search, pack)
    if not chosen.units:
        return replace(chosen, explanation=_why_dense(search, pack))
    assumed = [
        f"ratio {search.ratio:g} ({'assumed' if packed_ratio is None else 'given'})",
        f"decoding at {search.decode_gb_per_second:g} GB/s "
        f"({'assumed, not measured on this device' if decode_gb_per_second is None else 'given'})",
    ]
    return replace(chosen, explanation=(*_why_packed(search, pack, chosen), ", ".join(assumed)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """What is asked, and the plans that were made for it by number of packed units (None: does not fit)."""

    tree: BlockTree
    allocation: AllocationSpec | str
    hardware: Hardware
    ratio: float
    decode_gb_per_second: float
    seconds: Mapping[str, float] | None
    unit_seconds: Mapping[str, float] | None
    policy: Policy
    slots: int
    candidates: tuple[str, ...]
    tried: dict[int, PackedPlan | None]

    def attempt(self, count: int) -> PackedPlan | None:
        """The plan with `count` packed units, if it fits."""
        if count not in self.tried:
            try:
                self.tried[count] = self.packed(count)
            except (BudgetTooSmallError, NoSpaceError):
                self.tried[count] = None
        return self.tried[count]

    def packed(self, count: int) -> PackedPlan:
        """The plan with `count` packed units, evenly spread.

        Raises:
            BudgetTooSmallError, NoSpaceError: it does not fit.
        """
        total = len(self.candidates)
        units = tuple(self.candidates[(2 * index + 1) * total // (2 * count)] for index in range(count))
        tree = _with_packed(self.tree, units, self.ratio)
        decoded = {unit.path: _packable_bytes(unit) for unit in self.tree.units if unit.path in set(units)}
        decode = {path: size_bytes / (self.decode_gb_per_second * 1e9) for path, size_bytes in decoded.items()}
        made = plan(
            tree,
            self.allocation,
            _with_scratch(self.hardware, self.tree, units),
            policy=self.policy,
            slots=self.slots,
            unit_seconds=self.unit_seconds,
        )
        seconds = self.seconds
        if seconds is not None:
            seconds = {path: own + decode.get(path, 0.0) for path, own in seconds.items()}
        return PackedPlan(
            plan=made,
            estimate=predict(made, self.hardware, unit_seconds=seconds),
            units=units,
            dense_bytes=sum(decoded.values()),
            packed_bytes=sum(decoded.values()) - (self.tree.size_bytes - tree.size_bytes),
            decode_seconds=math.fsum(decode.values()),
            explanation=(),
        )


def _chosen(search: _Search, pack: Pack) -> PackedPlan:
    total = len(search.candidates)
    if pack != "auto":
        return search.packed(total if pack == "always" else 0)
    counts = {total * step // FIRST_STEPS for step in range(FIRST_STEPS + 1)}
    fastest = _fastest(search, counts)
    step = total // FIRST_STEPS
    while fastest is not None and step > 1:
        step //= 2
        here = len(fastest.units)
        fastest = _fastest(search, {max(0, here - step), here, min(total, here + step)} | counts)
    return search.packed(total) if fastest is None else fastest


def _fastest(search: _Search, counts: Collection[int]) -> PackedPlan | None:
    """The fastest of some plans; of those that are nearly as fast, the one that packs least."""
    found = [made for made in map(search.attempt, sorted(counts)) if made is not None]
    least = min((_forward(made) for made in found), default=0.0)
    return next((made for made in found if _forward(made) <= least * (1 + WORTHWHILE)), None)


def _forward(made: PackedPlan) -> float:
    assert made.estimate.seconds is not None
    return made.estimate.seconds


def _seconds(
    tree: BlockTree, compute_seconds: float | None, unit_seconds: Mapping[str, float] | None
) -> dict[str, float] | None:
    """Seconds of each unit with dense resident weights, as `predict` divides them; None when nothing is known."""
    if unit_seconds is None and compute_seconds is None:
        return None
    if unit_seconds is None:
        own = {unit.path: assumed_weight(unit.kind, is_embedding=unit.is_embedding) for unit in tree.units}
    else:
        own = {unit.path: unit_seconds.get(unit.path, 0.0) for unit in tree.units}
    if compute_seconds is None:
        return own
    check_seconds("compute_seconds", compute_seconds)
    total = math.fsum(own.values())
    if not total:
        return {path: compute_seconds / len(own) for path in own}
    return {path: compute_seconds * share / total for path, share in own.items()}


def _packable(tensor: TensorInfo) -> bool:
    return tensor.role == "parameter" and is_worth_packing(tensor.shape, tensor.dtype, tensor.size_bytes)


def _packable_bytes(unit: Unit) -> int:
    """Dense bytes of the tensors that are packed when the unit is."""
    if unit.kind == "rest" or unit.is_embedding:
        return 0
    return sum(tensor.size_bytes for tensor in unit.tensors if _packable(tensor))


def _with_packed(tree: BlockTree, units: Collection[str], ratio: float) -> BlockTree:
    """The tree with the packable tensors of some units at their estimated size."""

    def sized(tensor: TensorInfo) -> TensorInfo:
        return replace(tensor, size_bytes=math.ceil(tensor.size_bytes * ratio)) if _packable(tensor) else tensor

    chosen = set(units)
    return replace(
        tree,
        units=tuple(
            replace(unit, tensors=tuple(map(sized, unit.tensors))) if unit.path in chosen else unit
            for unit in tree.units
        ),
    )


def _with_scratch(hardware: Hardware, tree: BlockTree, units: Collection[str]) -> Hardware:
    """The machine with room for one decoded tensor reserved on the compute device."""
    scratch = _largest(tree, units)
    devices = tuple(
        replace(device, reserve_bytes=device.reserve_bytes + scratch) if device.name == hardware.compute else device
        for device in hardware.devices
    )
    return replace(hardware, devices=devices)


def _largest(tree: BlockTree, units: Collection[str]) -> int:
    chosen = set(units)
    tensors = [tensor for unit in tree.units if unit.path in chosen for tensor in unit.tensors if _packable(tensor)]
    return max((tensor.size_bytes for tensor in tensors), default=0)


def _why_dense(search: _Search, pack: Pack) -> tuple[str, ...]:
    if not search.candidates:
        return ("nothing is packed: no unit has bf16 matrices of 16,384 weights or more",)
    if pack == "never":
        return ("nothing is packed, as asked",)
    return ("nothing is packed: by prediction no number of packed units makes a forward faster",)


def _why_packed(search: _Search, pack: Pack, chosen: PackedPlan) -> list[str]:
    said = [
        f"packed: {len(chosen.units)} of {len(search.candidates)} units, {human_size(chosen.dense_bytes)} of bf16 in "
        f"{human_size(chosen.packed_bytes)}, without loss",
        f"decoding takes {human_seconds(chosen.decode_seconds)} of each forward, and one decoded tensor "
        f"{human_size(_largest(search.tree, chosen.units))} of {search.hardware.compute}",
    ]
    if pack == "auto":
        others = []
        for count, what in ((0, "nothing"), (len(search.candidates), "everything")):
            if count != len(chosen.units):
                other = search.attempt(count)
                cost = "does not fit" if other is None else f"takes {human_seconds(_forward(other))}"
                others.append(f"with {what} packed it {cost}")
        said.append(f"auto: a forward takes {human_seconds(_forward(chosen))}; {', '.join(others)}")
    return said


def _checked(name: str, value: float, *, most: float = math.inf) -> float:
    if isinstance(value, bool) or not (math.isfinite(value) and 0 < value <= most):
        limit = "" if most == math.inf else f" of at most {most:g}"
        raise InvalidPlanError(f"{name} is {value}; give a finite number above 0{limit}")
    return value
