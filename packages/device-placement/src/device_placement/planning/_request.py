"""What a plan has to respect: an allocation in bytes, and which device takes the rounding to whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alloc_spec import Budget, human_size
from block_discovery import BlockTree
from device_placement._errors import BudgetTooSmallError, InvalidPlanError
from device_placement._hardware import Device, Hardware
from device_placement._plan import aligned_bytes
from device_placement.planning._layout import Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a plan has to respect, in bytes.

    Attributes:
        wish: donors, their amounts and their order.
        rest_bytes: always resident.
        resident_bytes: most that the compute device may hold of the model, the rest included.
        usable_bytes: memory there for the model and the slots.
        may_choose: the compute device is ``auto``: less than `resident_bytes` is as good.
        warnings: about the request itself.
    """

    wish: Wish
    rest_bytes: int
    resident_bytes: int
    usable_bytes: int
    may_choose: bool
    warnings: tuple[str, ...]


def request_for(tree: BlockTree, budget: Budget, hardware: Hardware) -> Request:
    compute = hardware.compute
    if budget.compute_device not in (None, compute):
        raise InvalidPlanError(
            f"the budget computes on {budget.compute_device!r} but the hardware was described for {compute!r}; "
            f"describe or probe it with compute={budget.compute_device!r}"
        )
    if budget.model_bytes != tree.size_bytes:
        raise InvalidPlanError(
            f"the budget divides {budget.model_bytes} bytes but the model has {tree.size_bytes}; "
            f"resolve the allocation with model_bytes={tree.size_bytes}"
        )
    for name in budget.order:
        hardware.device(name)
    if runners := sorted(budget.run_devices - {compute}):
        raise InvalidPlanError(
            f"plans do not run blocks on {' and '.join(runners)} yet; leave out ',run', and what is held there streams "
            f"to {compute}"
        )
    order = budget.order if compute in budget.order else (compute, *budget.order)
    donors = [name for name in order if name != compute]
    amounts = {name: budget.bytes_for(name) for name in donors}
    flexible = [name for name in donors if name in budget.auto_devices or name == budget.rest_device]
    auto = compute in budget.auto_devices
    elastic = _elastic(donors, amounts, hardware, flexible, slack_bytes=_slack(tree, len(donors), auto=auto))
    rest = sum(unit.size_bytes for unit in tree.units if unit.kind == "rest")
    may_choose = auto and elastic is not None
    resident = budget.bytes_for(compute)
    if may_choose:
        resident += sum(amounts[name] for name in flexible)
    warnings: list[str] = []
    if resident < rest:
        _check_rest(hardware.device(compute), rest, resident, tree.size_bytes)
        resident = rest
        warnings.append(
            f"{compute} was given no bytes of the model, but {human_size(rest)} outside every block stay there: "
            "they are small, or shared by several blocks, and in use all the time"
        )
    warnings += _unverified(hardware, donors)
    return Request(
        wish=Wish(compute=compute, order=order, amounts=amounts, elastic=elastic),
        rest_bytes=rest,
        resident_bytes=resident,
        usable_bytes=hardware.device(compute).usable_bytes,
        may_choose=may_choose,
        warnings=tuple(warnings),
    )


def _elastic(
    donors: list[str], amounts: Mapping[str, int], hardware: Hardware, flexible: list[str], *, slack_bytes: int
) -> str | None:
    """The donor that takes the rounding: one whose amount is nobody's wish if there is one, then the roomiest.

    A donor that was given nothing, because others are to be filled first, takes none while one in use has room.
    """

    def preference(name: str) -> tuple[bool, bool, int, int]:
        room = hardware.device(name).usable_bytes - amounts[name]
        return name in flexible, amounts[name] > 0 and room >= slack_bytes, room, donors.index(name)

    return max(donors, key=preference, default=None)


def _slack(tree: BlockTree, donor_count: int, *, auto: bool) -> int:
    """The most that one donor may have to take beyond its amount: a unit a donor, and the gaps between tensors.

    Where the compute device may give up more than its amount (`auto`), that is the whole model.
    """
    units = [unit for unit in tree.units if unit.kind != "rest"]
    gaps = sum(aligned_bytes(tensor.size_bytes) - tensor.size_bytes for unit in units for tensor in unit.tensors)
    largest = max((unit.size_bytes for unit in units), default=0)
    return (tree.size_bytes if auto else donor_count * largest) + gaps


def _unverified(hardware: Hardware, donors: list[str]) -> list[str]:
    """A warning for each donor whose bytes have to take a detour."""
    return [
        f"bytes copied from {link.source} to {link.target} arrived changed when checked; they go through the host"
        for link in hardware.links
        if link.target == hardware.compute and link.source in donors and not link.verified
    ]


def _check_rest(compute: Device, rest_bytes: int, resident_bytes: int, model_bytes: int) -> None:
    """Refuse an amount that the rest does not fit into, unless it is 0 and there is something else to move."""
    if resident_bytes == 0 and rest_bytes < model_bytes:
        return
    if rest_bytes <= compute.usable_bytes:
        remedy = f"give {compute.name} at least {human_size(rest_bytes, rounding='up')} of the model"
    else:
        remedy = f"free memory on {compute.name} or lower its reserve"
    raise BudgetTooSmallError(
        device=compute.name,
        what="the always resident parts of the model, outside every block,",
        needed_bytes=rest_bytes,
        available_bytes=resident_bytes,
        remedy=remedy,
    )
