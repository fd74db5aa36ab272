"""Finds an allocation that would have resolved, so that an error can say what fits."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from alloc_spec._amounts import Amount, Donated, Free, Rest
from alloc_spec._errors import AllocResolveError, NoRoomError, NoSpaceError
from alloc_spec._memory import DeviceMemory
from alloc_spec._model import AllocationSpec, Dialect, Entry, controls_entries
from alloc_spec._sizes import GIB, read_size


def find_remedy(
    spec: AllocationSpec,
    error: NoSpaceError,
    model_bytes: int,
    devices: Mapping[str, DeviceMemory],
    settles: Callable[[AllocationSpec], object],
) -> str | None:
    """Return the text of the first changed specification that settles, the smallest change first.

    There is one whenever the devices together have room for the model.

    Args:
        spec: what did not resolve.
        error: why.
        model_bytes: size of the model.
        devices: memory of the devices there are.
        settles: raises AllocSpecError for a specification that does not resolve.

    Returns:
        An allocation that resolves, or None.
    """
    if spec.dialect is Dialect.CONTROLS:
        tries = _controls_tries(spec, model_bytes, devices)
    else:
        tries = _text_tries(spec, set(error.devices) if isinstance(error, NoRoomError) else set(), devices)
    for entries in tries:
        candidate = AllocationSpec(entries=tuple(entries), compute_device=spec.compute_device)
        try:
            settles(candidate)
        except AllocResolveError:
            continue
        return str(candidate)
    return None


def _controls_tries(
    spec: AllocationSpec, model_bytes: int, devices: Mapping[str, DeviceMemory]
) -> Iterator[Sequence[Entry]]:
    """Add donors, then move more (in tenths of a gigabyte if that fits), then move less."""
    compute, *donors = spec.devices
    others = [name for name in _by_preference(devices) if name not in spec.devices]
    donor_lists = [donors + others[:count] for count in range(len(others) + 1)]
    shares = (entry.amount.total_bytes for entry in spec.entries if isinstance(entry.amount, Donated))
    asked = min(model_bytes, next(shares))
    needed = max(asked, model_bytes - devices[compute].room)
    for moved_bytes in (asked, min(model_bytes, _round_up(needed)), needed):
        yield from (controls_entries(compute, moved_bytes, names) for names in donor_lists)
    for names in donor_lists:
        yield controls_entries(compute, min(asked, sum(devices[name].room for name in names)), names)


def _text_tries(spec: AllocationSpec, full: Set[str], devices: Mapping[str, DeviceMemory]) -> Iterator[Sequence[Entry]]:
    """Fill the full devices only as far as they go and let another take the rest; at last, fill all there are."""
    everything = {name: Free() for name in (*spec.devices, *_by_preference(devices))}
    if spec.dialect is not Dialect.RATIO:
        amounts: dict[str, Amount] = {entry.device: entry.amount for entry in spec.entries}
        yield from _with_rest(amounts | dict.fromkeys(full, Free()), full, devices)
    named = dict.fromkeys(spec.devices, Free())
    yield _entries(named)
    yield from _with_rest(named, full, devices)
    yield _entries(everything)


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
