"""Hand out bytes to devices in order along the model, never more than each may take."""

from __future__ import annotations

from collections.abc import Sequence


def fill_in_order(sizes: Sequence[int], amounts: Sequence[int], elastic: int) -> list[int]:
    """Give each item a device so that the order of the devices is the order along the items.

    Every device but one takes whole items up to its amount: those before the elastic one from the start of the model,
    those after it from the end. The elastic device takes what is left, and with it all rounding to whole items.

    Args:
        sizes: bytes of each item, in the order of the model.
        amounts: bytes that each device may take, in the user's order; ignored for the elastic device.
        elastic: index of the device that takes what is left.

    Returns:
        The index of a device for each item; ascending.

    >>> fill_in_order([4, 4, 4, 4], amounts=[9, 0, 5], elastic=1)
    [0, 0, 1, 2]
    """
    homes = [elastic] * len(sizes)
    start, end = 0, len(sizes)
    for device in range(elastic):
        room = amounts[device]
        while start < end and sizes[start] <= room:
            homes[start] = device
            room -= sizes[start]
            start += 1
    for device in range(len(amounts) - 1, elastic, -1):
        room = amounts[device]
        while start < end and sizes[end - 1] <= room:
            end -= 1
            homes[end] = device
            room -= sizes[end]
    return homes
