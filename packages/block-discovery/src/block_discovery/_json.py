"""Frozen dataclasses to JSON and back, strictly: one reader for everything that comes from outside as JSON.

Python's reader accepts more than JSON (NaN, keys twice), and fails in its own ways on what is hostile (deep nesting,
numbers of thousands of digits, halves of surrogate pairs). Here each of these is an `InvalidJsonError`, and a value
that does not fit its field is named by its path, such as ``units[3].kind``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from block_discovery._errors import InvalidJsonError
from block_discovery._quoting import quoted, shortened

T = TypeVar("T")

MAX_DEPTH = 64
"""Lists and objects inside one another; the deepest that the packages write has ten."""

MAX_INTEGER = 2**63 - 1
"""Whole numbers beyond this, or below its negative, fit no size, count or version."""

_AS_WRITTEN = "pass the text that to_json returned"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_Decode = Callable[[Any], Any]


class _Misfit(Exception):
    """A value that does not fit, and the steps to it, innermost first."""

    def __init__(self, reason: str, *steps: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.steps, self.remedy = reason, list(steps), remedy


def parse_json(text: str | bytes) -> Any:
    """Read JSON from outside, strictly.

    Args:
        text: the text, or its bytes in UTF-8.

    Returns:
        what `json.loads` makes of it.

    Raises:
        InvalidJsonError: it is not JSON; a key occurs twice; NaN or an infinity; nested deeper than `MAX_DEPTH`; not
            UTF-8, or half of a surrogate pair in a string. `offset_bytes` says where, if the place is known.
    """
    try:
        raw = text if isinstance(text, bytes) else text.encode()
        _require_shallow(raw)
        data = json.loads(raw.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        if _SURROGATE.search(raw):
            _require_whole_characters(data)
    except (ValueError, RecursionError) as error:
        # UnicodeError and JSONDecodeError are ValueErrors, and so is an integer of more than 4300 digits.
        place = len(raw.decode()[: error.pos].encode()) if isinstance(error, json.JSONDecodeError) else None
        raise InvalidJsonError(f"not valid JSON ({shortened(str(error))})", offset_bytes=place) from error
    return data


def encode_json(value: Any, format_name: str, *, version: int = 1, indent: int | None = None) -> str:
    """Write a dataclass as a JSON object that announces its format and version.

    Args:
        value: a dataclass of strings, numbers, truth values, None, tuples, mappings by string, and dataclasses.
        format_name: what the text is, such as ``"block-discovery/tree"``.
        version: of the format.
        indent: as in `json.dumps`.

    Raises:
        InvalidJsonError: a number is NaN or infinite.
    """
    header = {"format": format_name, "version": version}
    try:
        return json.dumps(header | _plain(value), indent=indent, allow_nan=False)
    except ValueError as error:
        raise InvalidJsonError(
            "a number is NaN or infinite", subject=format_name, remedy="JSON has finite numbers only"
        ) from error


def decode_json(
    cls: type[T], text: str | bytes, format_name: str, *, version: int = 1, optional: Collection[str] = ()
) -> T:
    """Inverse of `encode_json`; every field is checked against its annotation.

    Args:
        cls: the dataclass that was written.
        text: what `encode_json` returned, as text or in UTF-8.
        format_name: the format that the text must announce.
        version: the version that it must announce.
        optional: fields of any dataclass inside that older texts lack; their default is used. All others must be there.

    Raises:
        InvalidJsonError: not JSON, another format or version, a field that is missing, unknown or of the wrong type;
            the subject is the path of the value.
    """
    try:
        data = parse_json(text)
    except InvalidJsonError as error:
        error.remedy = _AS_WRITTEN
        raise
    if not isinstance(data, dict) or data.get("format") != format_name:
        raise InvalidJsonError(f'no object with "format": "{format_name}"', remedy=_AS_WRITTEN)
    found = data.get("version")
    if isinstance(found, bool) or found != version:
        raise InvalidJsonError(
            f"expected {version}, got {quoted(found)}", subject="version", remedy="write it again with this release"
        )
    fields = {name: value for name, value in data.items() if name not in ("format", "version")}
    try:
        decoded: T = _decoder(cls, frozenset(optional))(fields)
    except _Misfit as misfit:
        path = "".join(reversed(misfit.steps)).removeprefix(".")
        raise InvalidJsonError(misfit.reason, subject=path, remedy=misfit.remedy) from None
    return decoded


def _require_shallow(raw: bytes) -> None:
    """Refuse deep nesting before the recursive reader sees it: the stack is the process's, not Python's, to lose."""
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        closed = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(closed) == len(brackets):
            # Empty, or something does not end; what is left is at most this deep.
            break
        brackets = closed
    if len(brackets) > MAX_DEPTH or b"[]" in brackets or b"{}" in brackets:
        raise ValueError(f"lists and objects are nested deeper than {MAX_DEPTH}, or do not end")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {quoted(repeated)} occurs twice")
    return entries


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _require_whole_characters(data: Any) -> None:
    """Refuse half of a surrogate pair, which cannot be printed or written to a file."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, NoneType)):
        return value
    if dataclasses.is_dataclass(value):
        cls: Any = type(value)
        return {name: _plain(getattr(value, name)) for name in _field_names(cls)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]


@cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _decoder(hint: Any, optional: frozenset[str]) -> _Decode:
    return _make_decoder(hint, optional)


@cache
def _make_decoder(hint: Any, optional: frozenset[str]) -> _Decode:
    """What turns decoded JSON into a value of an annotation, made once for each annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        decode = _decoder(inner, optional)
        return lambda data: None if data is None else decode(data)
    if origin is Literal:
        return lambda data: _choice(data, arguments)
    if origin is tuple:
        return _tuple_decoder(arguments, optional)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_decoder(_decoder(arguments[1], optional))
    if dataclasses.is_dataclass(hint):
        return _dataclass_decoder(hint, optional)
    return _SCALARS[hint]


def _dataclass_decoder(cls: Any, optional: frozenset[str]) -> _Decode:
    hints = get_type_hints(cls)
    decoders = {name: _decoder(hints[name], optional) for name in _field_names(cls)}
    required = decoders.keys() - optional

    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            _refuse("an object", data)
        if not required <= data.keys() <= decoders.keys():
            _refuse_names(data, decoders, required)
        values = {}
        for name, value in data.items():
            try:
                values[name] = decoders[name](value)
            except _Misfit as misfit:
                misfit.steps.append(f".{name}")
                raise
        return cls(**values)

    return decode


def _refuse_names(data: dict[str, Any], decoders: Mapping[str, _Decode], required: Collection[str]) -> NoReturn:
    for name in decoders:
        if name in required and name not in data:
            raise _Misfit("the field is missing", f".{name}")
    unknown = next(name for name in data if name not in decoders)
    raise _Misfit("unknown field", f".{unknown}", remedy=f"known are {', '.join(decoders)}")


def _tuple_decoder(arguments: tuple[Any, ...], optional: frozenset[str]) -> _Decode:
    endless = len(arguments) == 2 and arguments[1] is Ellipsis
    decoders = [_decoder(argument, optional) for argument in (arguments[:1] if endless else arguments)]

    def decode(data: Any) -> Any:
        if not isinstance(data, list) or not (endless or len(data) == len(decoders)):
            _refuse("a list" if endless else f"a list of {len(decoders)}", data)
        values = []
        for index, item in enumerate(data):
            try:
                values.append(decoders[0 if endless else index](item))
            except _Misfit as misfit:
                misfit.steps.append(f"[{index}]")
                raise
        return tuple(values)

    return decode


def _mapping_decoder(decode_item: _Decode) -> _Decode:
    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            _refuse("an object", data)
        values = {}
        for key, item in data.items():
            try:
                values[key] = decode_item(item)
            except _Misfit as misfit:
                misfit.steps.append(f"[{quoted(key)}]")
                raise
        return values

    return decode


def _text(data: Any) -> Any:
    return data if isinstance(data, str) else _refuse("a string", data)


def _integer(data: Any) -> Any:
    if not isinstance(data, int) or isinstance(data, bool):
        _refuse("an integer", data)
    if not -MAX_INTEGER <= data <= MAX_INTEGER:
        _refuse("an integer that 64 bits can hold", data)
    return data


def _number(data: Any) -> Any:
    if not isinstance(data, (int, float)) or isinstance(data, bool):
        _refuse("a number", data)
    try:
        value = float(data)
    except OverflowError:
        value = math.inf
    return value if math.isfinite(value) else _refuse("a number that a float can hold", data)


def _flag(data: Any) -> Any:
    return data if isinstance(data, bool) else _refuse("true or false", data)


def _choice(data: Any, options: tuple[Any, ...]) -> Any:
    # By type too: true equals 1 to Python.
    if any(type(option) is type(data) and option == data for option in options):
        return data
    return _refuse(f"one of {', '.join(map(repr, options))}", data)


def _refuse(wanted: str, data: Any) -> NoReturn:
    raise _Misfit(f"expected {wanted}, got {quoted(data)}")


_SCALARS: Mapping[Any, _Decode] = {str: _text, int: _integer, float: _number, bool: _flag}
