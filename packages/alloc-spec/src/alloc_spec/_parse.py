"""From text to specification: reads by the grammar and turns failures into errors with a correction."""

from collections.abc import Callable
from typing import Final, TypeVar

from alloc_spec._errors import AllocRuleError, AllocSyntaxError, AllocValueError
from alloc_spec._grammar import DEVICE_HINT, Move, Reading, read_device, read_donors, read_text
from alloc_spec._model import AllocationSpec, Entry, controls_entries, find_conflict
from alloc_spec._repair import repair
from alloc_spec._tokens import NOTHING, ParseFailure, TokenStream

_T = TypeVar("_T")

MAX_TEXT_CHARACTERS: Final = 2**16
"""Longer texts are refused before any of it is read."""


def parse(text: str) -> AllocationSpec:
    """Read an allocation in any of its dialects.

    Args:
        text: entries such as `cuda:0,2.5gb;cpu,*`, or the wire form `EXPERT#COMPUTE;GB;DONOR1,DONOR2`.

    Returns:
        The specification, with its entries in the order of the text.

    Raises:
        AllocSyntaxError: the text is not an allocation; the error shows where, and a correction if there is one.
        AllocRuleError: the text contradicts itself.

    >>> spec = parse("CUDA:0, 2560 MB; cpu, *")
    >>> print(spec, spec.dialect, spec.devices)
    cuda:0,2.5gb;cpu,* bytes ('cuda:0', 'cpu')
    """
    return _read(text, _read_spec)


def parse_wire(text: str) -> AllocationSpec:
    """Read the wire form `EXPERT#COMPUTE;GB;DONOR1,DONOR2`.

    The expert part wins when it is not empty; of the rest only the compute device is kept then.

    Args:
        text: the wire form; behind an expert part `#COMPUTE` or `#` is enough.

    Returns:
        The specification, with `compute_device` if the text names it.

    Raises:
        AllocSyntaxError: the text is not of that form.
        AllocRuleError: the text contradicts itself.

    >>> spec = parse_wire("#cuda:0;4;cuda:1,cpu")
    >>> spec.compute_device, spec.dialect.value, spec.devices
    ('cuda:0', 'controls', ('cuda:0', 'cuda:1', 'cpu'))
    """
    return _read(text, _read_wire)


def parse_device(text: str) -> str:
    """Read the name of one device and return it in canonical form.

    Raises:
        AllocSyntaxError: the text is no device name.

    >>> parse_device(" CUDA:1")
    'cuda:1'
    """
    return _read(text, _read_one_device)


def parse_donors(text: str) -> tuple[str, ...]:
    """Read device names separated by commas and return them in canonical form.

    Raises:
        AllocSyntaxError: the text is no such list.

    >>> parse_donors("CUDA:1, cpu")
    ('cuda:1', 'cpu')
    """
    return _read(text, _read_donors)


def _read(text: str, reader: Callable[[str], _T]) -> _T:
    if not isinstance(text, str):
        raise AllocValueError("text", text, "pass a str")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise AllocSyntaxError(
            f"a text of {len(text)} characters",
            text,
            (MAX_TEXT_CHARACTERS, len(text)),
            f"an allocation has at most {MAX_TEXT_CHARACTERS}; most have under 100",
        )
    try:
        return reader(text)
    except ParseFailure as found:
        failure = found
    suggestion = repair(text, failure, reader)
    hint = failure.hint
    if suggestion is not None:
        question = f'did you mean "{suggestion}"?'
        hint = question if hint is None else f"{hint} - {question}"
    error = AllocRuleError if failure.is_rule else AllocSyntaxError
    raise error(failure.message, text, failure.span, hint, suggestion)


def _read_spec(text: str) -> AllocationSpec:
    return _to_spec(text, read_text(TokenStream(text)))


def _read_wire(text: str) -> AllocationSpec:
    return _to_spec(text, read_text(TokenStream(text), wire_only=True))


def _read_one_device(text: str) -> str:
    stream = TokenStream(text)
    name, _ = read_device(stream, "a device name", DEVICE_HINT)
    stream.expect_end("after the device", hint=DEVICE_HINT, repairs=(NOTHING,))
    return name


def _read_donors(text: str) -> tuple[str, ...]:
    stream = TokenStream(text)
    names = tuple(name for name, _ in read_donors(stream))
    stream.expect_end("after a device name", hint="devices are separated by ','", repairs=(",", NOTHING))
    return names


def _to_spec(text: str, reading: Reading) -> AllocationSpec:
    entries = reading.entries
    if not entries and reading.move is not None and reading.compute_device is not None:
        entries = _move_entries(reading.compute_device, reading.move)
    return AllocationSpec(entries=entries, compute_device=reading.compute_device, source=text)


def _move_entries(compute_device: str, move: Move) -> tuple[Entry, ...]:
    entries = controls_entries(compute_device, move.moved_bytes, [name for name, _ in move.donors])
    conflict = find_conflict(entries)
    if conflict is not None:
        span = move.donors[conflict.entry_index - 1][1]
        raise ParseFailure(conflict.message, span, hint=conflict.hint, is_rule=True)
    return entries
