"""Plans, hardware and estimates as JSON, by the strict reader of block-discovery."""

from __future__ import annotations

from typing import Final, TypeVar

import block_discovery
from block_discovery import decode_json, encode_json
from device_placement._errors import InvalidJsonError

T = TypeVar("T")

VERSION: Final = 1
OPTIONAL: Final = frozenset(
    {
        *("reserve_bytes", "label"),  # Device
        *("latency_seconds", "ingress", "verified"),  # Link
        "links",  # Hardware
        *("is_embedding", "warnings"),  # UnitPlacement, PlacementPlan
        "spans",  # Estimate
    }
)
"""Fields that a text written by hand may leave out; they have defaults."""


def dumps(kind: str, value: object, *, indent: int | None) -> str:
    """Text of a dataclass with a header that names its kind."""
    return encode_json(value, f"device-placement/{kind}", version=VERSION, indent=indent)


def loads(kind: str, cls: type[T], text: str | bytes) -> T:
    """Inverse of `dumps`.

    Raises:
        InvalidJsonError: not JSON, another format or version, a field missing, unknown or of the wrong type.
    """
    try:
        return decode_json(cls, text, f"device-placement/{kind}", version=VERSION, optional=OPTIONAL)
    except block_discovery.InvalidJsonError as error:
        raise InvalidJsonError(error.subject, error.reason) from error
