"""The typed result of reading an allocation: entries in the user's order, and what may not stand together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Final, Literal, NamedTuple

from alloc_spec._amounts import Amount, Bytes, DeviceFraction, Donated, Percent, Rest
from alloc_spec._device_names import check_device
from alloc_spec._errors import AllocValueError
from alloc_spec._sizes import GIB, write_number

RUN: Final = "run"
"""The word behind an amount that lets the device run what it holds."""


class Dialect(StrEnum):
    """The dialect that a specification is written in; it follows from the kinds of its amounts."""

    BYTES = "bytes"
    RATIO = "ratio"
    FRACTION = "fraction"
    MIXED = "mixed"
    CONTROLS = "controls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One device and its amount.

    Attributes:
        device: canonical name, `type` or `type:index` in lower case.
        amount: how much of the model it holds.
        runs: whether it also runs the blocks that it holds, where otherwise they stream to the compute device.

    Raises:
        AllocValueError: the name is not canonical, or `runs` is neither True nor False.
    """

    device: str
    amount: Amount
    runs: bool = False

    def __post_init__(self) -> None:
        check_device("device", self.device)
        if not isinstance(self.runs, bool):
            raise AllocValueError("runs", self.runs, "pass True or False")

    def __str__(self) -> str:
        return f"{self.device},{self.amount},{RUN}" if self.runs else f"{self.device},{self.amount}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSpec:
    """What the user asked for, independent of any model and machine.

    `str(spec)` is the canonical text, and `parse(str(spec)) == spec`.

    Attributes:
        entries: in the user's order, which is the order along the model.
        compute_device: where the model computes, if the controls or the wire string said so.
        source: the text it was read from; ignored by `==`.

    Raises:
        AllocValueError: the entries contradict each other.
    """

    entries: tuple[Entry, ...]
    compute_device: str | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.entries:
            raise AllocValueError("entries", self.entries, "an allocation has at least one entry")
        if self.compute_device is not None:
            check_device("compute_device", self.compute_device)
        conflict = find_conflict(self.entries)
        if conflict is not None:
            raise AllocValueError("entries", self.devices, f"{conflict.message}; {conflict.hint}")
        if self.dialect is Dialect.CONTROLS:
            self._check_controls()

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices in the user's order."""
        return tuple(entry.device for entry in self.entries)

    @property
    def run_devices(self) -> tuple[str, ...]:
        """Names of the devices that run what they hold, in the user's order."""
        return tuple(entry.device for entry in self.entries if entry.runs)

    @property
    def dialect(self) -> Dialect:
        """Dialect of the amounts; a wildcard goes with bytes and fractions, and makes percentages a mix."""
        amounts = [entry.amount for entry in self.entries]
        if any(isinstance(amount, Donated) for amount in amounts):
            return Dialect.CONTROLS
        if all(isinstance(amount, Percent) for amount in amounts):
            return Dialect.RATIO
        if all(isinstance(amount, (Bytes, Rest)) for amount in amounts):
            return Dialect.BYTES
        if all(isinstance(amount, (DeviceFraction, Rest)) for amount in amounts):
            return Dialect.FRACTION
        return Dialect.MIXED

    @property
    def rest_device(self) -> str | None:
        """Name of the device with the `*`, or None where no entry has it."""
        return next((entry.device for entry in self.entries if isinstance(entry.amount, Rest)), None)

    def __str__(self) -> str:
        if isinstance(self.entries[-1].amount, Donated):
            gigabytes = write_number(self.entries[-1].amount.total_bytes, GIB)
            return f"#{self.compute_device};{gigabytes};{','.join(self.devices[1:])}"
        text = ";".join(map(str, self.entries))
        return text if self.compute_device is None else f"{text}#{self.compute_device}"

    def _check_controls(self) -> None:
        amounts = {entry.amount for entry in self.entries[1:]}
        share = next(iter(amounts)) if len(amounts) == 1 else None
        compute = self.compute_device
        if (
            compute is None
            or not isinstance(share, Donated)
            or self.entries != controls_entries(compute, share.total_bytes, self.devices[1:])
        ):
            reason = (
                "controls are the compute device with Rest(), then donors that share one Donated(); use from_controls"
            )
            raise AllocValueError("entries", self.entries, reason)


def controls_entries(compute_device: str, moved_bytes: int, donors: Sequence[str]) -> tuple[Entry, ...]:
    """Express simple controls as entries: the compute device keeps the rest of what the donors share."""
    share = Donated(total_bytes=moved_bytes)
    return (
        Entry(device=compute_device, amount=Rest()),
        *(Entry(device=donor, amount=share) for donor in donors),
    )


class Conflict(NamedTuple):
    """Two things that may not stand together.

    Attributes:
        entry_index: the entry at which it shows.
        part: the part of the entry that is at fault.
        message: what is wrong.
        hint: what would be right.
    """

    entry_index: int
    part: Literal["device", "amount", "run"]
    message: str
    hint: str


def find_conflict(entries: Sequence[Entry]) -> Conflict | None:
    """Find the first contradiction between entries that needs no knowledge of the machine."""
    seen: set[str] = set()
    wildcards = 0
    for index, entry in enumerate(entries):
        if entry.device in seen:
            return _twice(index, entry, computes=entry.device == entries[0].device)
        seen.add(entry.device)
        if entry.runs and entry.device.partition(":")[0] == "cpu":
            return Conflict(
                index,
                "run",
                f"{entry.device} cannot run blocks: it would be slower than streaming them to the compute device",
                "leave out ',run', or let an accelerator run",
            )
        wildcards += isinstance(entry.amount, Rest)
        if wildcards > 1:
            return Conflict(
                index, "amount", "two devices cannot both take the rest", "keep one '*' and give the other an amount"
            )
    return _find_percent_conflict(entries)


def _twice(index: int, entry: Entry, *, computes: bool) -> Conflict:
    if not isinstance(entry.amount, Donated):
        return Conflict(index, "device", f"{entry.device} is named twice", "add its amounts up into one entry")
    if computes:
        message = f"{entry.device} computes and cannot be its own donor"
        example = "cuda:0" if entry.device == "cpu" else "cpu"
        return Conflict(index, "device", message, f"choose another donor, for example {example}")
    return Conflict(index, "device", f"the donor {entry.device} is named twice", "name each donor once")


def _find_percent_conflict(entries: Sequence[Entry]) -> Conflict | None:
    percents = [
        (index, entry.amount.percent) for index, entry in enumerate(entries) if isinstance(entry.amount, Percent)
    ]
    if not percents:
        return None
    if len(percents) == len(entries):
        if any(percent for _, percent in percents):
            return None
        return Conflict(len(entries) - 1, "amount", "the shares add up to 0 %", "give at least one device a share")
    total = Fraction()
    for index, percent in percents:
        total += Fraction(percent)
        if total > 100:
            return Conflict(
                index,
                "amount",
                "the percentages add up to more than 100 % of the model",
                "next to other amounts a percentage is a share of the model; lower one of them",
            )
    return None
