"""Finds an allocation that would have resolved, so that an error can say what fits.

Whoever streams needs room beside the model where it computes. So the device that computes is never advised to give
all its free memory: it is left to the planner, `auto`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from alloc_spec._amounts import Amount, Auto, Donated, Free, Rest
from alloc_spec._memory import DeviceMemory
from alloc_spec._model import AllocationSpec, Dialect, Entry, controls_entries
from alloc_spec._resolve_errors import AllocResolveError, NoRoomError, NoSpaceError
from alloc_spec._sizes import GIB, read_size


def find_remedy(
    spec: AllocationSpec,
    error: NoSpaceError,
    model_bytes: int,
    devices: Mapping[str, DeviceMemory],
    compute_device: str | None,
    settles: Callable[[AllocationSpec], object],
) -> str | None:
    """Return the text of the first changed specification that settles, the smallest change first.

    There is one whenever the devices together have room for the model.

    Args:
        spec: what did not resolve.
        error: why.
        model_bytes: size of the model.
        devices: memory of the devices there are.
        compute_device: where the model computes, if that is known.
        settles: raises AllocSpecError for a specification that does not resolve.

    Returns:
        An allocation that resolves, or None.
    """
    if spec.dialect is Dialect.CONTROLS:
        tries = _controls_tries(spec, model_bytes, devices)
    else:
        full = set(error.devices) if isinstance(error, NoRoomError) else set()
        tries = _text_tries(spec, full, devices, compute_device)
    for entries in tries:
        entries = tuple(replace(entry, runs=entry.device in spec.run_devices) for entry in entries)
        candidate = AllocationSpec(entries=entries, compute_device=spec.compute_device)
        try:
            settles(candidate)
        except AllocResolveError:
            continue
        return str(candidate)
    return None


def _controls_tries(
    spec: AllocationSpec, model_bytes: int, devices: Mapping[str, DeviceMemory]
) -> Iterator[Sequence[Entry]]:
    """Add donors, then let the planner move what it must to one of them, then move more, then less."""
    compute, *donors = spec.devices
    others = [name for name in _by_preference(devices) if name not in spec.devices]
    donor_lists = [donors + others[:count] for count in range(len(others) + 1)]
    shares = (entry.amount.total_bytes for entry in spec.entries if isinstance(entry.amount, Donated))
    asked = min(model_bytes, next(shares))
    needed = max(asked, model_bytes - devices[compute].room)
    yield from (controls_entries(compute, asked, names) for names in donor_lists)
    yield from (_entries({compute: Auto(), name: Rest()}) for name in donors + others)
    for moved_bytes in (min(model_bytes, _round_up(needed)), needed):
        yield from (controls_entries(compute, moved_bytes, names) for names in donor_lists)
    for names in donor_lists:
        yield controls_entries(compute, min(asked, sum(devices[name].room for name in names)), names)


def _text_tries(
    spec: AllocationSpec, full: Set[str], devices: Mapping[str, DeviceMemory], compute: str | None
) -> Iterator[Sequence[Entry]]:
    """Fill the full devices only as far as they go and let another take the rest; at last, fill all there are."""

    def filled(names: Iterable[str]) -> dict[str, Amount]:
        return {name: Auto() if name == compute else Free() for name in names}

    if spec.dialect is not Dialect.RATIO:
        amounts = {entry.device: entry.amount for entry in spec.entries}
        yield from _with_rest(amounts | filled(full), full, devices)
    named = filled(spec.devices)
    yield _entries(named)
    yield from _with_rest(named, full, devices)
    yield _entries(named | filled(_by_preference(devices)))


def _with_rest(
    amounts: Mapping[str, Amount], full: Set[str], devices: Mapping[str, DeviceMemory]
) -> Iterator[Sequence[Entry]]:
    if any(isinstance(amount, Rest) for amount in amounts.values()):
        yield _entries(amounts)
        return
    for name in _by_preference(devices):
        if name not in full:
            yield _entries({**amounts, name: Rest()})


def _entries(amounts: Mapping[str, Amount]) -> tuple[Entry, ...]:
    return tuple(Entry(device=name, amount=amount) for name, amount in amounts.items())


def _by_preference(devices: Mapping[str, DeviceMemory]) -> list[str]:
    """The cpu first, then the device with the most room."""
    return sorted(devices, key=lambda name: (name != "cpu", -devices[name].room))


def _round_up(size_bytes: int) -> int:
    tenths = -(-size_bytes * 10 // GIB)
    return read_size(f"{tenths // 10}.{tenths % 10}", GIB)
