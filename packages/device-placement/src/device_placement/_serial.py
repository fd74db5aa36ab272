"""Frozen dataclasses to JSON and back, strictly: every field is checked and an error names the path of a bad value."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from device_placement._errors import InvalidJsonError

T = TypeVar("T")
VERSION = 1
_PREFIX = "device-placement/"


def dumps(kind: str, value: Any, *, indent: int | None) -> str:
    """Text of a dataclass with a header that names its kind; NaN and infinities are refused."""
    header = {"format": _PREFIX + kind, "version": VERSION}
    return json.dumps(header | _encode(value), indent=indent, allow_nan=False)


def loads(kind: str, cls: type[T], text: str) -> T:
    """Inverse of `dumps`.

    Raises:
        InvalidJsonError: not JSON, another format or version, a field missing, unknown or of the wrong type.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidJsonError("", f"not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != _PREFIX + kind:
        raise InvalidJsonError("", f'expected an object with "format": "{_PREFIX}{kind}"')
    if data.get("version") != VERSION:
        raise InvalidJsonError("version", f"expected {VERSION}, got {data.get('version')!r}")
    fields = {key: value for key, value in data.items() if key not in ("format", "version")}
    decoded: T = _decode(cls, fields, "")
    return decoded


def _refuse_constant(name: str) -> None:
    """Python's reader knows NaN and infinities; JSON does not, and `dumps` does not write them."""
    raise ValueError(f"{name} is not a number")


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(hint: Any, data: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _decode_optional(hint, data, where)
    if origin is Literal:
        if data not in get_args(hint):
            raise InvalidJsonError(where, f"expected one of {', '.join(map(repr, get_args(hint)))}, got {data!r}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise InvalidJsonError(where, f"expected a list, got {data!r}")
        return tuple(_decode(get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if origin is Mapping:
        if not isinstance(data, dict):
            raise InvalidJsonError(where, f"expected an object, got {data!r}")
        return {key: _decode(get_args(hint)[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, data, where)
    return _decode_scalar(hint, data, where)


def _decode_optional(hint: Any, data: Any, where: str) -> Any:
    if data is None:
        return None
    (inner,) = (arg for arg in get_args(hint) if arg is not NoneType)
    return _decode(inner, data, where)


def _decode_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise InvalidJsonError(where, f"expected an object, got {data!r}")
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    dot = f"{where}." if where else ""
    for key in data:
        if key not in fields:
            raise InvalidJsonError(dot + key, f"unknown field of {cls.__name__}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise InvalidJsonError(dot + name, "the field is missing")
    return cls(**{key: _decode(hints[key], value, dot + key) for key, value in data.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Read once for each class: it takes longer than decoding a value."""
    return get_type_hints(cls)


def _decode_scalar(hint: Any, data: Any, where: str) -> Any:
    accepted = (int, float) if hint is float else hint
    # bool is an int to isinstance, but not to somebody who wrote a number.
    if not isinstance(data, accepted) or (isinstance(data, bool) and hint is not bool):
        raise InvalidJsonError(where, f"expected {hint.__name__}, got {data!r}")
    return _finite(data, where) if hint is float else data


def _finite(number: float, where: str) -> float:
    """A number too large for a float reads as infinite, or cannot be one."""
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise InvalidJsonError(where, "expected a number that a float can hold")
    return value
