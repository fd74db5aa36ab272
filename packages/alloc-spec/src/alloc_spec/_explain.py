"""Says in plain English what an allocation means, before any model or machine is known."""

from dataclasses import replace
from fractions import Fraction
from typing import assert_never

from alloc_spec._amounts import Amount, Auto, Bytes, DeviceFraction, Donated, Free, Percent, Rest
from alloc_spec._device_names import likely_device
from alloc_spec._human import human_size
from alloc_spec._model import AllocationSpec, Dialect
from alloc_spec._parse import parse
from alloc_spec._quoting import quoted
from alloc_spec._settle import implied_home


def explain(allocation: str | AllocationSpec) -> str:
    """Say in plain English what an allocation means.

    Args:
        allocation: a text in any dialect, or a specification.

    Returns:
        Several lines without a final line break, for tooltips, logs and the command line.

    Raises:
        AllocSyntaxError: the text cannot be read.

    >>> print(explain("cuda:0,2gb;cuda:1,25%;cpu,*"))
    cuda:0,2gb;cuda:1,25%;cpu,* means, along the model:
      1. cuda:0 holds 2 GiB of the model
      2. cuda:1 holds 25 % of the model
      3. cpu holds the rest
    """
    spec = parse(allocation) if isinstance(allocation, str) else allocation
    lines = [f"{spec} means, along the model:"]
    shares = _normalised(spec) if spec.dialect is Dialect.RATIO else {}
    for number, entry in enumerate(spec.entries, start=1):
        holds = shares.get(entry.device) or _phrase(entry.amount)
        runs = ", and runs the blocks that it holds" if entry.runs else ""
        lines.append(f"  {number}. {entry.device} holds {holds}{runs}")
    lines.extend(_footnotes(spec))
    lines.extend(_likely_names(spec))
    return "\n".join(lines)


def _likely_names(spec: AllocationSpec) -> list[str]:
    meant = {name: likely for name in spec.devices if (likely := likely_device(name)) is not None}
    if not meant:
        return []
    unusual = (
        f"  {' and '.join(map(quoted, meant))} {'is' if len(meant) == 1 else 'are'} not the usual name of a device"
    )
    devices = [meant.get(name, name) for name in spec.devices]
    if spec.dialect is Dialect.CONTROLS or len(set(devices)) < len(devices):
        return [f"{unusual} - did you mean {' and '.join(meant.values())}?"]
    entries = tuple(replace(entry, device=name) for entry, name in zip(spec.entries, devices, strict=True))
    return [f'{unusual} - did you mean "{replace(spec, entries=entries)}"?']


def _phrase(amount: Amount) -> str:
    match amount:
        case Bytes(size_bytes=size_bytes):
            return f"{human_size(size_bytes)} of the model"
        case Percent(percent=percent):
            return f"{_decimal(Fraction(percent))} % of the model"
        case DeviceFraction(fraction=fraction):
            return f"as much as goes into {_decimal(100 * Fraction(fraction))} % of its total memory"
        case Free(keep_bytes=0):
            return "as much as goes into its free memory"
        case Free(keep_bytes=keep_bytes):
            return f"as much as goes into its free memory, of which {human_size(keep_bytes)} stay free"
        case Rest(expected_bytes=expected):
            return "the rest" if expected is None else f"the rest; more than {human_size(expected)} is a warning"
        case Auto():
            return "what the planner decides, at most half its room if there is no planner"
        case Donated(total_bytes=total_bytes):
            return f"its part of the {human_size(total_bytes)} that move; donors are filled in this order"
    assert_never(amount)


def _normalised(spec: AllocationSpec) -> dict[str, str]:
    percents = {
        entry.device: Fraction(entry.amount.percent) for entry in spec.entries if isinstance(entry.amount, Percent)
    }
    total = sum(percents.values(), Fraction())
    if total == 100:
        return {}
    return {
        device: f"{_decimal(100 * percent / total)} % of the model ({_decimal(percent)} of {_decimal(total)} parts)"
        for device, percent in percents.items()
    }


def _footnotes(spec: AllocationSpec) -> list[str]:
    notes = []
    if spec.compute_device is not None:
        notes.append(f"  {spec.compute_device} computes")
        if spec.compute_device in spec.run_devices:
            notes.append(f"  'run' has no effect on {spec.compute_device}, which computes anyway")
    if spec.dialect is Dialect.RATIO or spec.rest_device is not None:
        return notes
    home = implied_home(spec, spec.compute_device)
    if home is not None:
        notes.append(f"  what is left goes to {home}")
    elif spec.dialect is Dialect.BYTES and spec.compute_device is None:
        notes.append("  what is left goes to the device that computes, if that is another one")
    else:
        notes.append("  together they must hold the whole model; where one has '*', it takes the rest")
    return notes


def _decimal(value: Fraction) -> str:
    return f"{float(value):.6g}"
