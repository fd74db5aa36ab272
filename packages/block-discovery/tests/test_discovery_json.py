"""JSON from outside: what is hostile is the package's own error, and every field is checked by its annotation."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from block_discovery import InvalidJsonError, decode_json, encode_json, parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    count: int
    flag: bool = False
    kind: Literal["a", "b", 1] = "a"
    inner: Inner | None = None
    sizes: tuple[int, ...] = ()
    pair: tuple[str, int] = ("x", 1)
    named: Mapping[str, Inner] = field(default_factory=dict)


FORMAT = "tests/outer"
OUTER = Outer(count=3, inner=Inner(name="i", factor=0.5), sizes=(1, 2), named={"k": Inner(name="n")})


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(encode_json(OUTER, FORMAT)) | fields)


outers = st.builds(
    Outer,
    count=st.integers(-(2**63 - 1), 2**63 - 1),
    flag=st.booleans(),
    kind=st.sampled_from(["a", "b", 1]),
    inner=st.none() | st.builds(Inner, name=st.text(), factor=st.floats(allow_nan=False, allow_infinity=False)),
    sizes=st.lists(st.integers(0, 9)).map(tuple),
    pair=st.tuples(st.text(), st.integers(0, 9)),
    named=st.dictionaries(st.text(), st.builds(Inner, name=st.text())),
)


@given(outers, st.sampled_from([None, 2]))
def test_what_is_written_reads_back_from_text_and_from_bytes(outer: Outer, indent: int | None) -> None:
    text = encode_json(outer, FORMAT, version=7, indent=indent)
    assert decode_json(Outer, text, FORMAT, version=7) == outer
    assert decode_json(Outer, text.encode(), FORMAT, version=7) == outer


HOSTILE: dict[str, str | bytes] = {
    "nothing": "",
    "half an object": '{"a": ',
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep and closed": "[" * 100_000 + "]" * 100_000,
    "deep, in brackets that alternate": "[{" + '"a":[{' * 5_000,
    "deeper than the limit by one": "[" * 65 + "]" * 65,
    "a byte order mark": "\ufeff{}",
    "two texts": "{}{}",
    "NaN": "NaN",
    "an infinity in a list": "[-Infinity]",
    "a number of 9,000 digits": "9" * 9000,
    "a key twice": '{"a": 1, "a": 2}',
    "another charset": b'{"a": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "half of a surrogate pair": '{"a": "\\ud800"}',
    "half of a surrogate pair in a key": '{"\\udfff": 1}',
    "half of a surrogate pair, not escaped": '{"a": "\ud800"}',
    "a control character": '{"a": "\x01"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_by_our_own_error_in_a_line(name: str) -> None:
    with pytest.raises(InvalidJsonError, match="not valid JSON") as caught:
        parse_json(HOSTILE[name])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidJsonError):
        decode_json(Outer, HOSTILE[name], FORMAT)


def test_depth_is_refused_before_the_recursive_reader_runs() -> None:
    """Where somebody has raised the recursion limit, that reader would overflow the stack of the process."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        with pytest.raises(InvalidJsonError, match="nested deeper than 64"):
            parse_json("[" * 10**6)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("text", ["[" * 64 + "]" * 64, '{"a": "[[[[{{{{\\"[["}', '["\\ud83d\\ude00 \\\\ud800"]', "[]"])
def test_what_only_looks_hostile_is_read(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "piece", ['"', '\\"', '"\\', "[", "{", '{"a":', "[]", "1", '"a",', '"\\ud800', "9" * 50, '{"a":1},']
)
def test_reading_time_grows_no_faster_than_the_text(piece: str) -> None:
    """Measured as the better of three, against ten times the time of a tenth of the text."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            with pytest.raises(InvalidJsonError):
                parse_json("[" + text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(2_000_000) < 40 * seconds(200_000) + 0.2


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "a number too large for 64 bits": (
        {"count": 10**400},
        r"^count: expected an integer that 64 bits can hold, got a nu",
    ),
    "a truth value as a number": ({"count": True}, r"^count: expected an integer, got True"),
    "a fraction as a whole number": ({"count": 1.0}, r"^count: expected an integer, got 1\.0"),
    "a number as a truth value": ({"flag": 1}, r"^flag: expected true or false, got 1"),
    "true for a literal 1": ({"kind": True}, r"^kind: expected one of 'a', 'b', 1, got True"),
    "a list for a literal": ({"kind": []}, r"^kind: expected one of"),
    "a number too large for a float": (
        {"inner": {"name": "n", "factor": 10**400}},
        r"^inner\.factor: expected a number that a float can hold, got a number of 1329 bits",
    ),
    "a truth value as a float": ({"inner": {"name": "n", "factor": True}}, r"^inner\.factor: expected a number, got T"),
    "a field that is missing inside": ({"named": {"k": {"factor": 1}}}, r"^named\['k'\]\.name: the field is missing"),
    "a field with a default that is missing": ({"inner": {"name": "n"}}, r"^inner\.factor: the field is missing"),
    "an unknown field": ({"extra": 1}, r"^extra: unknown field; known are count, flag"),
    "a pair of three": ({"pair": ["x", 1, 2]}, r"^pair: expected a list of 2, got \['x', 1, 2\]"),
    "a pair the wrong way round": ({"pair": [1, "x"]}, r"^pair\[0\]: expected a string, got 1"),
    "text for a list": ({"sizes": "12"}, r"^sizes: expected a list, got '12'"),
    "a list for a mapping": ({"named": []}, r"^named: expected an object, got \[\]"),
    "a long text": ({"count": "x" * 10**6}, r"^count: expected an integer, got 'xxx"),
    "an unknown field of a long name": ({"x" * 10**6: 1}, r"xxx\.\.\.xxx"),
    "another version": ({"version": 2}, r"^version: expected 1, got 2"),
    "true for the version": ({"version": True}, r"^version: expected 1, got True"),
    "another format": ({"format": "x"}, r'^no object with "format": "tests/outer"'),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_value_that_does_not_fit_is_named_by_its_path(name: str) -> None:
    fields, message = MISFITS[name]
    with pytest.raises(InvalidJsonError, match=message) as caught:
        decode_json(Outer, changed(**fields), FORMAT)
    assert len(str(caught.value)) < 600


def test_only_fields_called_optional_may_be_missing() -> None:
    text = changed(inner={"name": "n"})
    assert decode_json(Outer, text, FORMAT, optional={"factor"}).inner == Inner(name="n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_hold_is_not_written(number: float) -> None:
    with pytest.raises(InvalidJsonError, match="NaN or infinite"):
        encode_json(Inner(name="n", factor=number), FORMAT)
