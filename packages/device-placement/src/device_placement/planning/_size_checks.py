"""Refuse a plan that does not fit into the memory there is, and say what would."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from alloc_spec import human_size
from device_placement._errors import BudgetTooSmallError
from device_placement._hardware import Hardware
from device_placement._plan import PlacementPlan, aligned_bytes
from device_placement.planning._fitting import Fitting

_BYTES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def check_compute(chosen: PlacementPlan, fitting: Fitting, hardware: Hardware) -> None:
    """Refuse a plan whose residents and slots do not fit, and say which would."""
    usable = fitting.request.usable_bytes
    if chosen.compute_peak_bytes <= usable:
        return
    compute = chosen.compute
    largest = chosen if fitting.request.may_choose else fitting.largest_fitting()
    if fitting.fits(largest):
        most = _stated(largest.bytes_on(compute), lambda amount: fitting.fits(fitting.plan(amount)))
        remedy = f"keep at most {most} of the model there"
    else:
        least = human_size(largest.compute_peak_bytes, rounding="up")
        remedy = (
            f"the least that can be there is {least}, buffers included: free memory on {compute}, lower its reserve or "
            "use fewer slots"
        )
    buffers = ""
    if chosen.slot_bytes:
        buffers = f" + {chosen.slots} x {human_size(chosen.slot_bytes, rounding='up')} of buffers"
    raise BudgetTooSmallError(
        device=compute,
        what=f"{human_size(chosen.bytes_on(compute), rounding='up')} of weights{buffers}",
        needed_bytes=chosen.compute_peak_bytes,
        available_bytes=usable,
        remedy=remedy,
    )


def check_donor(chosen: PlacementPlan, donor: str, hardware: Hardware) -> None:
    """Refuse a plan that puts more on a donor than is free there."""
    usable = hardware.device(donor).usable_bytes
    needed = sum(aligned_bytes(home.size_bytes) for unit in chosen.units for home in unit.homes if home.device == donor)
    if needed > usable:
        raise BudgetTooSmallError(
            device=donor,
            what="the weights stored there",
            needed_bytes=needed,
            available_bytes=usable,
            remedy=f"give {donor} at most {human_size(usable, rounding='down')} and the rest to another donor",
        )


def _stated(size_bytes: int, fits: Callable[[int], bool]) -> str:
    """The largest amount that fits as a person writes it, in whole bytes where the rounded amount would not fit.

    Streaming a little more may take a whole tensor more, and with it larger buffers.
    """
    text = human_size(size_bytes, rounding="down")
    number, unit = text.split()
    rounded = int(Fraction(number) * _BYTES[unit]) if unit in _BYTES else size_bytes
    return text if fits(rounded) else f"{size_bytes} bytes"
