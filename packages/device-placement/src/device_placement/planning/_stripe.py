"""Policy `stripe`: every unit keeps some tensors and streams a share, proportional to the compute it hides behind.

With two slots the copy for unit j runs while unit j - 1 computes, so a pass takes ``C`` plus whatever each copy
takes longer than that. Such a sum is smallest for the most even shares, and even shares also make the smallest
slots: for N equal units and m slots within V bytes, ``(W + R - V) / (N - m)`` each, W being the bytes of the units
and R those that never move.

Tensors are not cut. Each unit offers the sums that subsets of its tensors reach; one threshold for all units picks
the nearest sum to its part of the threshold, and the units that would switch at the final threshold switch evenly
spaced.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from device_placement.planning._selection import Movable, Selection, Selector, tiers

RESOLUTION = 128
"""Sums of a unit that differ by less than 1/128 of it count as one: the one of the fewest tensors is offered."""

SMALL_FRACTION = 256
"""Tensors below 1/256 of their unit move only with all others: each costs a swap and saves next to nothing."""

BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class _Menu:
    """The sums that a unit can stream, ascending from 0, with their tensors, and the midpoints between sums."""

    sums: tuple[int, ...]
    tensors: tuple[frozenset[int], ...]
    midpoints: tuple[float, ...]


def striped(units: Sequence[Movable], *, slots: int) -> Selector:
    """Policy `stripe` for one model; see the top of this file."""
    known: dict[tuple[int, ...], _Menu] = {}
    menus = [known.get(unit.sizes) or known.setdefault(unit.sizes, _menu(unit.sizes)) for unit in units]
    groups = [(tier, _hiding_weights(units, tier, slots)) for tier in tiers(units)]

    def select(need_bytes: int) -> Selection:
        picks = [0] * len(units)
        missing = need_bytes
        for tier, weights in groups:
            offered = [menus[index] for index in tier]
            for index, pick in zip(tier, _pick(offered, weights, missing), strict=True):
                picks[index] = pick
                missing -= menus[index].sums[pick]
        return [menu.tensors[pick] for menu, pick in zip(menus, picks, strict=True)]

    return select


def _menu(sizes: tuple[int, ...]) -> _Menu:
    total = sum(sizes)
    offers: dict[int, tuple[int, frozenset[int]]] = {0: (0, frozenset())}
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if sizes[index] * SMALL_FRACTION < total or not sizes[index]:
            break
        for reached, tensors in list(offers.values()):
            bucket = (reached + sizes[index]) * RESOLUTION // total
            if bucket not in offers or len(offers[bucket][1]) > len(tensors) + 1:
                offers[bucket] = (reached + sizes[index], tensors | {index})
    everything = (total, frozenset(index for index, size in enumerate(sizes) if size))
    ordered = sorted(offer for offer in offers.values() if offer[0] < total)
    ordered = [*ordered, everything] if total else [(0, frozenset())]
    sums = tuple(reached for reached, _ in ordered)
    return _Menu(sums, tuple(tensors for _, tensors in ordered), tuple((a + b) / 2 for a, b in pairwise(sums)))


def _hiding_weights(units: Sequence[Movable], tier: Sequence[int], slots: int) -> list[float]:
    """Compute that the copy for each unit of a tier can hide behind: that of the `slots - 1` units before it."""
    own = [units[index].weight for index in tier]
    largest = max(own, default=0.0)
    if not largest:
        return [1.0] * len(own)
    behind = min(slots, len(own)) - 1
    windows = (
        [sum(own[at - back] for back in range(1, behind + 1)) / behind for at in range(len(own))] if behind else own
    )
    return [max(window, largest * 1e-6) for window in windows]


def _pick(menus: Sequence[_Menu], weights: Sequence[float], need_bytes: int) -> list[int]:
    """An offer of each menu, so that they add up to at least `need_bytes` (or to all there is), as even as can be."""
    if need_bytes <= 0:
        return [0] * len(menus)
    full = [len(menu.sums) - 1 for menu in menus]
    if _total(menus, full) <= need_bytes:
        return full
    below = [0] * len(menus)
    above = full
    low, high = 0.0, max(menu.sums[-1] / weight for menu, weight in zip(menus, weights, strict=True))
    for _ in range(BISECTIONS):
        threshold = (low + high) / 2
        picks = [bisect_right(menu.midpoints, threshold * weight) for menu, weight in zip(menus, weights, strict=True)]
        if _total(menus, picks) < need_bytes:
            low, below = threshold, picks
        else:
            high, above = threshold, picks
    return _settle(menus, below, above, need_bytes)


def _settle(menus: Sequence[_Menu], below: list[int], above: list[int], need_bytes: int) -> list[int]:
    """Between too little (`below`) and enough (`above`): as few switches as reach `need_bytes`, evenly spaced."""
    switching = [index for index, (a, b) in enumerate(zip(below, above, strict=True)) if a != b]

    def switched(count: int) -> list[int]:
        picks = list(below)
        for turn in range(count):
            index = switching[(2 * turn + 1) * len(switching) // (2 * count)]
            picks[index] = above[index]
        return picks

    few, enough = 0, len(switching)
    while enough - few > 1:
        middle = (few + enough) // 2
        if _total(menus, switched(middle)) < need_bytes:
            few = middle
        else:
            enough = middle
    return _give_back(menus, switched(enough), need_bytes)


def _give_back(menus: Sequence[_Menu], picks: list[int], need_bytes: int) -> list[int]:
    """Let single units stream less while more than `need_bytes` is streamed: the one that uses up the excess best.

    What is left over is less than any unit could give back, and so less than a unit.
    """
    while excess := _total(menus, picks) - need_bytes:
        saved, index, lower = 0, 0, 0
        for candidate, (menu, pick) in enumerate(zip(menus, picks, strict=True)):
            least = bisect_left(menu.sums, menu.sums[pick] - excess)
            if menu.sums[pick] - menu.sums[least] >= max(saved, 1):
                saved, index, lower = menu.sums[pick] - menu.sums[least], candidate, least
        if not saved:
            break
        picks[index] = lower
    return picks


def _total(menus: Sequence[_Menu], picks: Sequence[int]) -> int:
    return sum(menu.sums[pick] for menu, pick in zip(menus, picks, strict=True))
