"""The simple controls: move so many gigabytes from the device that computes to its donors."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from alloc_spec._errors import AllocValueError
from alloc_spec._model import AllocationSpec, controls_entries, find_conflict
from alloc_spec._parse import parse_device, parse_donors
from alloc_spec._sizes import GIB, MAX_BYTES, read_size


def from_controls(
    *, compute_device: str, virtual_ram_gb: float, donor_device: str | Sequence[str] = "cpu"
) -> AllocationSpec:
    """Express the three simple controls as a specification.

    The model stays on `compute_device` except for `virtual_ram_gb` of it, which goes to the donors: to the first one
    until its room is full, then to the next. At least what was asked is moved; a part of a byte counts as a byte.

    Args:
        compute_device: where the model computes.
        virtual_ram_gb: how much of the model to move, in units of 1024**3 bytes; 0 keeps all of it.
        donor_device: who takes it; several as a sequence, or in one text separated by commas.

    Returns:
        A specification of the dialect `controls`.

    Raises:
        AllocSyntaxError: a device name cannot be read.
        AllocValueError: the amount is negative or not finite, or a donor is named twice or computes itself.

    >>> print(from_controls(compute_device="cuda:0", virtual_ram_gb=4.5, donor_device=["cuda:1", "cpu"]))
    #cuda:0;4.5;cuda:1,cpu
    """
    compute = parse_device(compute_device)
    texts = (donor_device,) if isinstance(donor_device, str) else tuple(donor_device)
    donors = tuple(name for text in texts for name in parse_donors(text))
    if not donors:
        raise AllocValueError("donor_device", donor_device, 'name at least one donor, for example "cpu"')
    entries = controls_entries(compute, _moved_bytes(virtual_ram_gb), donors)
    conflict = find_conflict(entries)
    if conflict is not None:
        reason = f"{conflict.message}; {conflict.hint}"
        raise AllocValueError("donor_device", entries[conflict.entry_index].device, reason)
    spec = AllocationSpec(entries=entries, compute_device=compute)
    return replace(spec, source=str(spec))


def _moved_bytes(virtual_ram_gb: float) -> int:
    if not isinstance(virtual_ram_gb, (int, float)) or isinstance(virtual_ram_gb, bool):
        raise AllocValueError("virtual_ram_gb", virtual_ram_gb, "pass a number of gigabytes")
    if isinstance(virtual_ram_gb, int) and abs(virtual_ram_gb) > MAX_BYTES:
        raise AllocValueError("virtual_ram_gb", virtual_ram_gb, "that is beyond 8 EiB; pass gigabytes, not bytes")
    gigabytes = Decimal(str(virtual_ram_gb))
    if not gigabytes.is_finite() or gigabytes < 0:
        raise AllocValueError(
            "virtual_ram_gb", virtual_ram_gb, "pass a finite number of gigabytes that is not negative"
        )
    if gigabytes * GIB > MAX_BYTES:
        raise AllocValueError("virtual_ram_gb", virtual_ram_gb, "that is beyond 8 EiB; pass gigabytes, not bytes")
    return read_size(format(abs(gigabytes), "f"), GIB)
