"""What the words of the command line mean: sizes, devices, links and numbers, checked before anything is loaded.

Sizes and device names are read by alloc-spec, so that ``24gb`` means the same here as in an allocation.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from alloc_spec import AllocSpecError, Bytes, Entry, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceArgument:
    """A device described by hand.

    Attributes:
        name: canonical name, for example ``"cuda:0"``.
        total_bytes: all memory of the device.
        free_bytes: what of it may be used.
    """

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkArgument:
    """The way from a donor to the compute device.

    Attributes:
        source: canonical name of the donor.
        gb_per_second: sustained bandwidth in 1e9 bytes a second.
    """

    source: str
    gb_per_second: float


def is_auto(text: str) -> bool:
    """Whether an allocation is the word that leaves the choice to Torchspan, as it does in the nodes.

    >>> is_auto(" Auto "), is_auto("cuda:0,auto;cpu,*")
    (True, False)
    """
    return text.strip().lower() == "auto"


def read_size(text: str) -> int:
    """Read a size with its unit, base 1024.

    Raises:
        argparse.ArgumentTypeError: it is not one; the message shows what would be.

    >>> read_size("2.5gb")
    2684354560
    """
    return _entry_of("cpu", text)[1]


def read_device(text: str) -> DeviceArgument:
    """Read ``NAME=TOTAL`` or ``NAME=TOTAL,FREE``.

    Raises:
        argparse.ArgumentTypeError: it is neither, or more is free than there is.

    >>> read_device("CUDA:0=24gb,22gb")
    DeviceArgument(name='cuda:0', total_bytes=25769803776, free_bytes=23622320128)
    """
    name, equals, sizes = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no device; write NAME=TOTAL or NAME=TOTAL,FREE, for example cuda:0=24gb,22gb"
        )
    total, comma, free = sizes.partition(",")
    name, total_bytes = _entry_of(name, total)
    free_bytes = _entry_of(name, free)[1] if comma else total_bytes
    if free_bytes > total_bytes:
        raise argparse.ArgumentTypeError(
            f"{text!r} has more free memory than there is; write NAME=TOTAL,FREE in this order"
        )
    return DeviceArgument(name=name, total_bytes=total_bytes, free_bytes=free_bytes)


def read_link(text: str) -> LinkArgument:
    """Read ``SOURCE=GBPS``, the bandwidth in 1e9 bytes a second.

    Raises:
        argparse.ArgumentTypeError: it is not one.

    >>> read_link("cpu=25")
    LinkArgument(source='cpu', gb_per_second=25.0)
    """
    source, equals, rate = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no link; write SOURCE=GBPS, for example cpu=25 for 25e9 bytes a second"
        )
    return LinkArgument(source=read_device_name(source), gb_per_second=read_positive(rate))


def read_device_name(text: str) -> str:
    """Read the name of a device into its canonical form.

    Raises:
        argparse.ArgumentTypeError: it is not one.

    >>> read_device_name(" CUDA:0 ")
    'cuda:0'
    """
    return _entry_of(text, "0b")[0]


def read_positive(text: str) -> float:
    """Read a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def read_count(text: str) -> int:
    """Read a whole number, 1 or more.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _entry_of(device: str, size: str) -> tuple[str, int]:
    """The canonical name of a device and the bytes of a size; read one by one, so that errors name the bad one."""
    match _entries(f"{device},*"), _entries(f"cpu,{size}"):
        case (Entry(device=name),), (Entry(amount=Bytes(size_bytes=size_bytes)),):
            return name, size_bytes
        case (Entry(),), _:
            raise argparse.ArgumentTypeError(
                f"{size!r} is no size; write a number and its unit, for example 24gb or 512mb"
            )
        case _:
            raise argparse.ArgumentTypeError(f"{device!r} is no name of a device; write one such as cuda:0 or cpu")


def _entries(text: str) -> tuple[Entry, ...]:
    """The entries of an allocation; none where it cannot be read."""
    try:
        return parse(text).entries
    except AllocSpecError:
        return ()
