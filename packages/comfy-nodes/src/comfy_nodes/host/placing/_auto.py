"""Automatic mode: the allocation with the least slowdown, and the reasons for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from alloc_spec import AllocationSpec, AllocResolveError, Auto, Bytes, Entry, Rest, human_size
from block_discovery import BlockTree
from comfy_nodes.host._errors import PlacementRefusedError
from comfy_nodes.host.app._machine import machine
from device_placement import Hardware, PlacementError, Policy, plan, predict


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An allocation for one model on one machine.

    Attributes:
        spec: the allocation.
        hardware: the machine, with the devices that the allocation names.
        reasons: why it was chosen, one sentence a line.
    """

    spec: AllocationSpec
    hardware: Hardware
    reasons: tuple[str, ...] = ()


def choose(tree: BlockTree, compute: str, donors: Sequence[str], *, policy: Policy) -> Choice:
    """Choose donors and amounts for a model.

    A model that fits beside the reserve for activations stays whole. Of a larger one as much stays as fits, and the
    rest goes to the set of donors over whose links a pass can fetch it soonest: donors on different links share it in
    proportion to their bandwidth, donors behind one link do not help each other.

    Raises:
        PlacementRefusedError: there is no room for the model on all devices together.
    """
    hardware = machine(compute, donors)
    room = hardware.device(compute)
    have = (
        f"{compute} has {human_size(room.free_bytes)} that can be free, of which {human_size(room.reserve_bytes)} "
        "are for activations"
    )
    whole = AllocationSpec(entries=(Entry(device=compute, amount=Rest()),))
    if tree.size_bytes <= room.usable_bytes:
        fits = f"auto: {human_size(tree.size_bytes)} of weights fit on {compute}: {have}; nothing is streamed"
        return Choice(spec=whole, hardware=hardware, reasons=(fits,))
    best: tuple[float, AllocationSpec] | None = None
    tried: list[str] = []
    refusals: list[str] = []
    for spec in _candidates(tree, hardware):
        try:
            seconds = predict(plan(tree, spec, hardware, policy=policy), hardware).transfer_seconds
        except (PlacementError, AllocResolveError) as error:
            refusals.append(f"{spec}: {error}")
            continue
        tried.append(f"{_names(spec, compute)} {seconds * 1e3:.3g} ms")
        if best is None or seconds < best[0] * 0.99:
            best = (seconds, spec)
    if best is None:
        raise PlacementRefusedError(
            f"a model of {human_size(tree.size_bytes)}",
            "no device or set of devices has room for it: " + "; ".join(refusals or ["there is no donor"]),
            "free memory, or take a smaller or quantised model",
        )
    seconds, spec = best
    reasons = (
        f"auto: {human_size(tree.size_bytes)} of weights are more than fit: {have}",
        f"auto: as much as fits stays there, the rest comes from {_names(spec, compute)} "
        f"({', '.join(f'{link.source} {link.gb_per_second:.3g} GB/s' for link in hardware.links)} measured)",
        f"auto: transfers of one pass take, from {'; '.join(tried)}",
    )
    return Choice(spec=spec, hardware=hardware, reasons=reasons)


def _candidates(tree: BlockTree, hardware: Hardware) -> Iterator[AllocationSpec]:
    """Every set of donors, small sets first; the fastest link first, and the last donor takes what is left."""
    compute = hardware.compute
    ranked = sorted(hardware.donors, key=lambda donor: -hardware.link(donor, compute).gb_per_second)
    leaving = max(0, tree.size_bytes - hardware.device(compute).usable_bytes)
    for count in range(1, len(ranked) + 1):
        for donors in combinations(ranked, count):
            rates = [hardware.link(donor, compute).gb_per_second for donor in donors]
            shares = [
                min(int(leaving * rate / sum(rates)), hardware.device(donor).usable_bytes)
                for donor, rate in zip(donors, rates, strict=True)
            ]
            named = [
                Entry(device=donor, amount=Bytes(size_bytes=share))
                for donor, share in zip(donors[:-1], shares, strict=False)
            ]
            yield AllocationSpec(
                entries=(
                    Entry(device=compute, amount=Auto()),
                    *named,
                    Entry(device=donors[-1], amount=Rest()),
                )
            )


def _names(spec: AllocationSpec, compute: str) -> str:
    return " and ".join(name for name in spec.devices if name != compute)
