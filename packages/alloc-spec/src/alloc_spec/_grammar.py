"""The grammar: one recursive-descent function a rule, each with its EBNF.

Names in lower case are rules, between whose tokens spaces may stand; names in capitals are single tokens:

    NAME = LETTER , { LETTER | DIGIT | "_" } ;
    INDEX = "0" | NONZERO , { DIGIT } ;
    NUMBER = DIGIT , { DIGIT } , [ "." , DIGIT , { DIGIT } ] | "." , DIGIT , { DIGIT } ;
    UNIT = "b" | ( "k" | "m" | "g" | "t" ) , [ "b" | "ib" ] ;
    LETTER = ? [A-Za-z] ? ;
    DIGIT = ? [0-9] ? ;
    NONZERO = ? [1-9] ? ;

The case of letters does not matter. A test holds these rules, docs/allocation-grammar.md and the functions below
against each other.
"""

import difflib
from decimal import Decimal
from typing import Literal, NamedTuple

from alloc_spec._amounts import Amount, Auto, Bytes, DeviceFraction, Free, Percent, Rest
from alloc_spec._device_names import MAX_DEVICE_CHARACTERS
from alloc_spec._model import RUN, Entry, find_conflict
from alloc_spec._sizes import GIB, MAX_BYTES, MAX_NUMBER_CHARACTERS, UNITS, read_size
from alloc_spec._tokens import NOTHING, ParseFailure, Token, TokenStream

DEVICE_HINT = "a device is NAME or NAME:INDEX, for example cpu or cuda:0"
_ENTRY_HINT = 'an entry is DEVICE,AMOUNT, for example "cuda:0,2gb;cpu,*"'
_ENTRIES_HINT = "entries are separated by ';'"
_AMOUNT_HINT = "an amount is 2.5gb, 25%, 0.5, *, 5gb*, free-1gb or auto"
_WIRE_HINT = "the wire form is EXPERT#COMPUTE;GB;DONOR1,DONOR2"
_RUN_HINT = "'run' stands behind an amount, for example cuda:1,8gb,run"
_UNIT_HINT = "units are b, kb, mb, gb and tb"
_LONGEST_CORRECTED_WORD = 24
_AFTER_SPEC = ("end", "#")

Span = tuple[int, int]
EntrySpans = dict[Literal["device", "amount", "run"], Span]


class Move(NamedTuple):
    """What the simple controls of a wire string move and to whom, not yet checked against each other."""

    moved_bytes: int
    donors: list[tuple[str, Span]]


class Reading(NamedTuple):
    """A text that was read: entries, a compute device, a move; at least entries or a move."""

    entries: tuple[Entry, ...]
    compute_device: str | None
    move: Move | None


def read_text(stream: TokenStream, *, wire_only: bool = False) -> Reading:
    """Read a whole text.

    text = spec , [ "#" , [ device , [ ";" , move ] ] ] | "#" , device , ";" , move ;
    """
    entries = () if stream.current.kind == "#" else read_spec(stream)
    if not stream.accept("#"):
        if wire_only:
            raise stream.unexpected("'#' after the expert part", hint=_WIRE_HINT)
        return Reading(entries, None, None)
    if entries and stream.current.kind == "end":
        return Reading(entries, None, None)
    compute_device, _ = read_device(stream, "the compute device", _WIRE_HINT)
    move = None
    if not entries or stream.current.kind != "end":
        stream.expect(";", "after the compute device", hint=_WIRE_HINT, repairs=(";",))
        move = read_move(stream)
    stream.expect_end("after the donors", hint=_WIRE_HINT, repairs=(",", NOTHING))
    return Reading(entries, compute_device, move)


def read_move(stream: TokenStream) -> Move:
    """Read how many gigabytes move, and to whom.

    move = NUMBER , ";" , donors ;
    """
    if stream.current.kind != "number":
        raise stream.unexpected("the gigabytes to move", hint=_WIRE_HINT)
    moved_bytes = _size(stream.advance(), GIB)
    stream.expect(";", "after the gigabytes", hint=f"{_WIRE_HINT}; GB has no unit", repairs=(NOTHING,))
    return Move(moved_bytes, read_donors(stream))


def read_donors(stream: TokenStream) -> list[tuple[str, Span]]:
    """Read the devices that take what is moved.

    donors = device , { "," , device } ;
    """
    donors = [read_device(stream, "a donor device", _WIRE_HINT)]
    while stream.accept(","):
        donors.append(read_device(stream, "a donor device", _WIRE_HINT))
    return donors


def read_spec(stream: TokenStream) -> tuple[Entry, ...]:
    """Read the entries and hold them against each other.

    spec = entry , { ";" , entry } , [ ";" ] ;
    """
    entries: list[Entry] = []
    spans: list[EntrySpans] = []
    separator: Token | None = None
    while True:
        entry, entry_spans = read_entry(stream, separator)
        entries.append(entry)
        spans.append(entry_spans)
        separator = stream.current
        if not stream.accept(";") or stream.current.kind in _AFTER_SPEC:
            break
    if stream.current.kind not in _AFTER_SPEC:
        raise _after_amount(stream)
    _refuse_conflict(entries, spans)
    return tuple(entries)


def _refuse_conflict(entries: list[Entry], spans: list[EntrySpans]) -> None:
    conflict = find_conflict(entries)
    if conflict is not None:
        span = spans[conflict.entry_index][conflict.part]
        repairs = (NOTHING,) if conflict.part == "run" else ()
        raise ParseFailure(conflict.message, span, hint=conflict.hint, repairs=repairs, is_rule=True)


def read_entry(stream: TokenStream, separator: Token | None) -> tuple[Entry, EntrySpans]:
    """Read one device, its amount, and whether it runs what it holds.

    entry = device , "," , amount , [ "," , "run" ] ;
    """
    device, device_span = read_device(stream, "a device name", _ENTRY_HINT)
    if device == RUN and separator is not None and stream.current.kind != ",":
        span = separator.start, device_span[1]
        raise ParseFailure(f"expected ',' before {RUN!r}, found ';'", span, hint=_RUN_HINT, repairs=(f",{RUN}",))
    repairs: tuple[str, ...] = (",", f",{stream.current.text}")
    if stream.current.kind == "end":
        repairs = () if separator is None and ":" not in device else (",*",)
    stream.expect(",", f"after the device {device!r}", hint=_ENTRY_HINT, repairs=repairs)
    start = stream.current.start
    amount, end = read_amount(stream)
    comma = stream.current
    runs = comma.kind == "," and stream.following.text == RUN
    if runs:
        stream.advance()
        run_span = comma.start, stream.advance().end
    else:
        run_span = end, end
    spans: EntrySpans = {"device": device_span, "amount": (start, end), "run": run_span}
    return Entry(device=device, amount=amount, runs=runs), spans


def read_device(stream: TokenStream, wanted: str, hint: str) -> tuple[str, Span]:
    """Read the name of a device; whether there is such a device is a question for `resolve`.

    device = NAME , [ ":" , INDEX ] ;
    """
    if stream.current.kind != "word":
        raise stream.unexpected(wanted, hint=hint, repairs=(NOTHING,))
    name = stream.advance()
    _refuse_long_name(name.text, name.span)
    if stream.current.kind != ":":
        return name.text, name.span
    stream.advance()
    index = stream.current
    if index.kind != "number" or not index.text.isdigit():
        raise stream.unexpected(f"an index after {name.text + ':'!r}", hint=DEVICE_HINT)
    if index.text[0] == "0" and index.text != "0":
        shorter = index.text.lstrip("0") or "0"
        raise stream.unexpected("an index without leading zeros", hint="write the index plainly", repairs=(shorter,))
    stream.advance()
    device, span = f"{name.text}:{index.text}", (name.start, index.end)
    _refuse_long_name(device, span)
    return device, span


def _refuse_long_name(device: str, span: Span) -> None:
    if len(device) > MAX_DEVICE_CHARACTERS:
        message = f"a device name of {len(device)} characters"
        raise ParseFailure(message, span, hint=f"write at most {MAX_DEVICE_CHARACTERS}", is_rule=True)


def read_amount(stream: TokenStream) -> tuple[Amount, int]:
    """Read an amount; also return the index after its last character.

    amount = "*" | "auto" | free | NUMBER , [ "%" | UNIT , [ "*" ] ] ;
    """
    token = stream.current
    if token.kind == "number":
        return _read_quantity(stream)
    if token.kind == "*":
        return Rest(), stream.advance().end
    if token.text == "auto":
        return Auto(), stream.advance().end
    if token.text == "free":
        return read_free(stream)
    if token.kind == "-":
        raise stream.unexpected("an amount", hint="an amount cannot be negative", repairs=(NOTHING,))
    raise stream.unexpected("an amount", hint=_AMOUNT_HINT, repairs=_amount_repairs(token))


def read_free(stream: TokenStream) -> tuple[Free, int]:
    """Read `free` and what is to stay free.

    free = "free" , [ "-" , NUMBER , UNIT ] ;
    """
    end = stream.advance().end
    if not stream.accept("-"):
        return Free(), end
    if stream.current.kind != "number":
        raise stream.unexpected("the size that stays free", hint="write free-1gb, or free alone")
    number = stream.advance()
    unit = _expect_unit(stream, number)
    return Free(keep_bytes=_size(number, UNITS[unit.text], unit)), unit.end


def _read_quantity(stream: TokenStream) -> tuple[Amount, int]:
    number = stream.advance()
    following = stream.current
    if following.kind == "%":
        _refuse_long(number)
        return Percent(percent=Decimal(number.text)), stream.advance().end
    before_run = following.kind == "," and stream.following.text == RUN
    if following.kind == ";" or following.kind in _AFTER_SPEC or before_run:
        return _fraction(number), number.end
    if following.kind != "word":
        raise _after_amount(stream)
    unit = _expect_unit(stream, number)
    size_bytes = _size(number, UNITS[unit.text], unit)
    if stream.current.kind == "*":
        return Rest(expected_bytes=size_bytes), stream.advance().end
    return Bytes(size_bytes=size_bytes), unit.end


def _expect_unit(stream: TokenStream, number: Token) -> Token:
    unit = stream.current
    if unit.kind == "word" and unit.text in UNITS:
        return stream.advance()
    if unit.kind != "word":
        raise stream.unexpected(f"a unit after {number.shown}", hint=_UNIT_HINT, repairs=(f"gb{unit.text}",))
    hint, repairs = _UNIT_HINT, _nearest(unit.text, tuple(UNITS))
    if unit.text[0] == "e" and unit.text[1:].isdigit():
        hint = "exponents are not read; write the number out, with a unit"
    if unit.text == RUN:
        hint, repairs = _RUN_HINT, (f",{RUN}",)
    elif number.end != unit.start and not repairs:
        hint, repairs = _ENTRIES_HINT, (f";{unit.text}",)
    raise stream.unexpected(f"a unit after {number.shown}", hint=hint, repairs=repairs)


def _after_amount(stream: TokenStream) -> ParseFailure:
    token, following = stream.current, stream.following
    if token.kind == "," and following.kind == "word" and _nearest(following.text, (RUN,)):
        stream.advance()
        return stream.unexpected(f"{RUN!r} after the second ','", hint=_RUN_HINT, repairs=(RUN,))
    repairs = [";", f";{token.text}"]
    if token.kind == ",":
        repairs.insert(1, ".")
    if token.text == RUN:
        repairs.insert(0, f",{RUN}")
    repairs.insert(0 if stream.at_last else len(repairs), NOTHING)
    return stream.unexpected("';' or the end after an amount", hint=_ENTRIES_HINT, repairs=repairs)


def _fraction(number: Token) -> DeviceFraction:
    _refuse_long(number)
    fraction = Decimal(number.text)
    if fraction > 1:
        raise ParseFailure(
            f"{number.text} is not a fraction of a device's memory, which goes from 0 to 1",
            number.span,
            hint="a size has a unit and a share has '%'",
            repairs=(f"{number.text}gb", f"{number.text}%"),
            is_rule=True,
        )
    return DeviceFraction(fraction=fraction)


def _size(number: Token, unit_bytes: int, unit: Token | None = None) -> int:
    _refuse_long(number)
    size_bytes = read_size(number.text, unit_bytes)
    if size_bytes > MAX_BYTES:
        span = number.start, (unit or number).end
        raise ParseFailure("a size beyond 8 EiB", span, hint="check the number and its unit", is_rule=True)
    return size_bytes


def _refuse_long(number: Token) -> None:
    if len(number.text) > MAX_NUMBER_CHARACTERS:
        message = f"a number of {len(number.text)} characters"
        hint = f"write at most {MAX_NUMBER_CHARACTERS}"
        raise ParseFailure(message, number.span, hint=hint, is_rule=True)


def _amount_repairs(token: Token) -> tuple[str, ...]:
    if token.kind == "end":
        return ("*",)
    return _nearest(token.text, ("auto", "free")) if token.kind == "word" else (NOTHING,)


def _nearest(word: str, words: tuple[str, ...]) -> tuple[str, ...]:
    if len(word) > _LONGEST_CORRECTED_WORD:
        return ()
    return tuple(difflib.get_close_matches(word, words, n=1))
