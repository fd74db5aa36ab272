"""The arithmetic of a resolution: who holds how many bytes, by phases, in integers.

Exact demands come first (bytes, then percentages), ceilings next (fractions and free memory), then `auto`, then the
rest. Within a phase the user's order counts. No device ever holds more than its room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from alloc_spec._amounts import Auto, Bytes, DeviceFraction, Donated, Free, Percent, Rest
from alloc_spec._budget import Budget
from alloc_spec._human import human_size
from alloc_spec._memory import DeviceMemory, require_device
from alloc_spec._model import AllocationSpec, Dialect
from alloc_spec._resolve_errors import ExceedsModelError, NoHomeError, NoRoomError

AUTO_ROOM_DIVISOR: Final = 2


@dataclass(slots=True, kw_only=True)
class _Ledger:
    """Who holds what so far."""

    model_bytes: int
    devices: Mapping[str, DeviceMemory]
    amounts: dict[str, int]
    warnings: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Bytes of the model without a home."""
        return self.model_bytes - sum(self.amounts.values())

    def give(self, device: str, size_bytes: int) -> None:
        """Put exactly so many bytes on a device."""
        room = self.devices[device].room
        if size_bytes > room:
            raise NoRoomError((device,), size_bytes, room)
        self.amounts[device] = size_bytes

    def fill(self, device: str, most_bytes: int) -> None:
        """Put as much of what is left on a device as it has room for, up to a limit of its total."""
        limit = min(most_bytes, self.devices[device].room)
        self.amounts[device] += max(0, min(self.left, limit - self.amounts[device]))


def settle(
    spec: AllocationSpec, model_bytes: int, devices: Mapping[str, DeviceMemory], compute_device: str | None
) -> Budget:
    """Turn a specification into a budget; the devices that it needs are known to exist.

    Raises:
        ExceedsModelError: controls are to move more than the model.
        UnknownDeviceError: the device that takes the rest unasked is not there.
        NoRoomError: a device is to hold more than its room.
        NoHomeError: a part of the model is put nowhere.
    """
    ledger = _Ledger(model_bytes=model_bytes, devices=devices, amounts=dict.fromkeys(spec.devices, 0))
    if spec.dialect is Dialect.CONTROLS:
        _settle_controls(spec, ledger)
    elif spec.dialect is Dialect.RATIO:
        _settle_ratio(spec, ledger)
    else:
        _settle_phases(spec, ledger, compute_device)
    if compute_device in spec.run_devices:
        ledger.warnings.append(f"{compute_device} computes anyway: 'run' has no effect there")
    rest_device = spec.rest_device or implied_home(spec, compute_device)
    return Budget(
        order=tuple(ledger.amounts),
        amounts=ledger.amounts,
        compute_device=compute_device,
        warnings=tuple(ledger.warnings),
        auto_devices=frozenset(entry.device for entry in spec.entries if isinstance(entry.amount, Auto)),
        rest_device=rest_device if rest_device in ledger.amounts else None,
        run_devices=frozenset(spec.run_devices) - {compute_device},
    )


def implied_home(spec: AllocationSpec, compute_device: str | None) -> str | None:
    """Name the device that takes the rest though the text has no wildcard; only the dialect `bytes` has one.

    It is the cpu; where the text gives the cpu an amount, it is the device that computes; else no device takes it.
    """
    if spec.dialect is not Dialect.BYTES or spec.rest_device is not None:
        return None
    if "cpu" not in spec.devices:
        return "cpu"
    return None if compute_device in spec.devices else compute_device


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Split a total into integers by shares that add up to 1; the largest remainders get the odd units.

    >>> apportion(10, [Fraction(1, 3), Fraction(1, 3), Fraction(1, 3)])
    [4, 3, 3]
    """
    exact = [total * share for share in shares]
    parts = [int(value) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _settle_controls(spec: AllocationSpec, ledger: _Ledger) -> None:
    compute, *donors = spec.devices
    (asked,) = {entry.amount.total_bytes for entry in spec.entries if isinstance(entry.amount, Donated)}
    if asked > ledger.model_bytes:
        raise ExceedsModelError(asked, ledger.model_bytes)
    left = asked
    for donor in donors:
        ledger.amounts[donor] = min(left, ledger.devices[donor].room)
        left -= ledger.amounts[donor]
    if left:
        raise NoRoomError(tuple(donors), asked, asked - left)
    ledger.give(compute, ledger.left)


def _settle_ratio(spec: AllocationSpec, ledger: _Ledger) -> None:
    percents = [Fraction(entry.amount.percent) for entry in spec.entries if isinstance(entry.amount, Percent)]
    shares = [percent / sum(percents) for percent in percents]
    for device, size_bytes in zip(spec.devices, apportion(ledger.model_bytes, shares), strict=True):
        ledger.give(device, size_bytes)
    if len(percents) == 1 and percents[0] != 100:
        ledger.warnings.append(
            f"{spec.devices[0]} holds the whole model: percentages alone are shares of their sum; "
            'add ";cpu,*" to make them shares of the model'
        )


def _settle_phases(spec: AllocationSpec, ledger: _Ledger, compute_device: str | None) -> None:
    for device, size_bytes in [*_byte_demands(spec), *_percent_demands(spec, ledger.model_bytes)]:
        if size_bytes > ledger.left:
            ledger.warnings.append(
                f"{device} was to hold {human_size(size_bytes)}, "
                f"but only {human_size(ledger.left)} of the model were left for it"
            )
        ledger.give(device, min(size_bytes, ledger.left))
    for entry in spec.entries:
        if isinstance(entry.amount, (DeviceFraction, Free)):
            _fill_up_to_ceiling(entry.device, entry.amount, ledger)
    autos = [entry.device for entry in spec.entries if isinstance(entry.amount, Auto)]
    for device in autos:
        ledger.fill(device, ledger.devices[device].room // AUTO_ROOM_DIVISOR)
    _settle_rest(spec, ledger, autos, compute_device)


def _byte_demands(spec: AllocationSpec) -> list[tuple[str, int]]:
    return [(entry.device, entry.amount.size_bytes) for entry in spec.entries if isinstance(entry.amount, Bytes)]


def _percent_demands(spec: AllocationSpec, model_bytes: int) -> list[tuple[str, int]]:
    shares = {
        entry.device: Fraction(entry.amount.percent) / 100
        for entry in spec.entries
        if isinstance(entry.amount, Percent)
    }
    parts = apportion(model_bytes, [*shares.values(), 1 - sum(shares.values(), Fraction())])
    return list(zip(shares, parts, strict=False))


def _fill_up_to_ceiling(device: str, amount: DeviceFraction | Free, ledger: _Ledger) -> None:
    memory = ledger.devices[device]
    if isinstance(amount, DeviceFraction):
        ceiling = int(memory.total * Fraction(amount.fraction))
    else:
        ceiling = memory.free - max(memory.reserve, amount.keep_bytes)
    if min(ledger.left, ceiling) > memory.room:
        ledger.warnings.append(
            f"{device} may use {human_size(ceiling)}, "
            f"but has room for only {human_size(memory.room)} (free less reserve)"
        )
    if isinstance(amount, Free) and ceiling <= 0:
        ledger.warnings.append(f'{device} holds nothing: "{amount}" leaves none of its free memory')
    elif not ledger.left:
        ledger.warnings.append(f"{device} holds nothing: the whole model has a home before it is asked")
    ledger.fill(device, ceiling)


def _settle_rest(spec: AllocationSpec, ledger: _Ledger, autos: Sequence[str], compute_device: str | None) -> None:
    home = spec.rest_device
    if home is None and ledger.left:
        home = implied_home(spec, compute_device)
    if home is not None:
        require_device(home, ledger.devices, "it takes the rest, since no other device has a '*'")
        ledger.amounts.setdefault(home, 0)
        ledger.fill(home, ledger.model_bytes)
    _grow(autos, ledger)
    if ledger.left and home is not None:
        raise NoRoomError((home,), ledger.amounts[home] + ledger.left, ledger.devices[home].room)
    if ledger.left:
        raise NoHomeError(ledger.left, ledger.model_bytes, tuple(ledger.amounts.items()))
    for entry in spec.entries:
        if isinstance(entry.amount, Rest) and entry.amount.expected_bytes is not None:
            _warn_beyond(entry.device, entry.amount.expected_bytes, ledger)


def _grow(autos: Sequence[str], ledger: _Ledger) -> None:
    for device in autos:
        before = ledger.amounts[device]
        ledger.fill(device, ledger.model_bytes)
        if ledger.amounts[device] > before:
            ledger.warnings.append(f"{device} is filled beyond half of its room: the rest has no other home")


def _warn_beyond(device: str, expected_bytes: int, ledger: _Ledger) -> None:
    taken = ledger.amounts[device]
    if taken > expected_bytes:
        ledger.warnings.append(
            f"{device} takes {human_size(taken)}, more than the {human_size(expected_bytes)} expected there"
        )
