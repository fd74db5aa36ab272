"""The errors of packed weights."""

from __future__ import annotations

from device_placement._errors import PlacementError


class PackedError(PlacementError, ValueError):
    """A packed weight cannot do what was asked, or cannot be what it was said to be."""


class DamagedPackError(PackedError):
    """The bytes of a packed weight contradict each other or their checksum."""
