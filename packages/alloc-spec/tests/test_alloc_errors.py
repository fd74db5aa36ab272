"""The error tree: its shape, its sentences, its data, and that it crosses process borders."""

import copy
import pickle

import pytest

import alloc_spec
from alloc_spec import (
    AllocResolveError,
    AllocRuleError,
    AllocSpecError,
    AllocSyntaxError,
    AllocValueError,
    ComputeDeviceError,
    ExceedsModelError,
    NoHomeError,
    NoRoomError,
    NoSpaceError,
    UnknownDeviceError,
    parse,
)

GIB = 2**30
ONE_OF_EACH: list[AllocSpecError] = [
    AllocSyntaxError("expected ','", "cuda:0=4gb", (6, 7), "write ','", "cuda:0,4gb"),
    AllocRuleError("cpu is named twice", "cpu,1b;cpu,1b", (7, 10), "once"),
    AllocValueError("free", -1, "pass more"),
    UnknownDeviceError("cuda:9", ("cuda:0", "cpu"), "cuda:0", "named in the text"),
    ComputeDeviceError("cuda:0", "cuda:1"),
    ExceedsModelError(20 * GIB, 10 * GIB, "#cuda:0;10;cpu"),
    NoRoomError(("cuda:1", "cpu"), 15 * GIB, 12 * GIB, "cuda:1,free;cpu,*"),
    NoHomeError(GIB, 10 * GIB, (("cuda:0", 9 * GIB),), None),
]


def test_one_tree_with_one_root_that_is_a_value_error() -> None:
    errors = [item for item in vars(alloc_spec).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert len(errors) == 11
    assert all(issubclass(error, AllocSpecError) for error in errors)
    assert issubclass(AllocSpecError, ValueError)
    assert {error for error in errors if issubclass(error, AllocResolveError)} == {
        AllocResolveError,
        UnknownDeviceError,
        ComputeDeviceError,
        NoSpaceError,
        ExceedsModelError,
        NoRoomError,
        NoHomeError,
    }


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_and_copying(error: AllocSpecError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_a_syntax_error_looks_as_the_style_page_shows() -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse("cuda:0,2gb,cpu,*")
    assert str(caught.value) == (
        "expected ';' or the end after an amount, found ','\n"
        "    cuda:0,2gb,cpu,*\n"
        "              ^\n"
        "entries are separated by ';' - did you mean \"cuda:0,2gb;cpu,*\"?"
    )


def test_a_syntax_error_without_a_hint_has_three_lines() -> None:
    assert str(AllocSyntaxError("no", "abc", (1, 3))) == "no\n    abc\n     ^^"


def test_a_span_at_the_end_is_one_caret_behind_the_text() -> None:
    assert str(AllocSyntaxError("no", "abc", (3, 3))).splitlines()[2] == " " * 7 + "^"


def test_the_caret_stands_under_wide_characters() -> None:
    _, source, caret = str(AllocSyntaxError("no", "显卡，2gb", (2, 3))).splitlines()
    assert source == "    显卡，2gb"
    assert caret == " " * 4 + " " * 4 + "^^"


def test_line_breaks_and_control_characters_do_not_break_the_excerpt() -> None:
    text = "a\n\tb\x00\ud800c"
    message, source, caret = str(AllocSyntaxError("no", text, (6, 7))).splitlines()
    assert (message, source, caret) == ("no", "    a  b  c", " " * 10 + "^")


@pytest.mark.parametrize("place", [0, 10, 500, 990, 999])
def test_a_long_text_is_cut_around_the_span(place: int) -> None:
    text = "".join(chr(ord("a") + index % 26) for index in range(1000))
    _, source, caret = str(AllocSyntaxError("no", text, (place, place + 1))).splitlines()
    assert len(source[4:].strip(".")) == 100
    assert source[caret.index("^")] == text[place]
    assert source.startswith("    ...") == (place > 50)
    assert source.endswith("...") == (place < 950)


def test_a_long_span_does_not_leave_the_excerpt() -> None:
    _, source, caret = str(AllocSyntaxError("no", "x" * 1000, (0, 1000))).splitlines()
    assert len(caret.strip()) == 100
    assert len(source) == 4 + 100 + 3


def test_long_tokens_are_shortened_in_the_message() -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse("cuda:0,1" + "x" * 1000)
    assert caught.value.message == f"expected a unit after '1', found '{'x' * 21}...'"
    assert caught.value.span == (8, 1008)


def test_an_unknown_device_names_what_there_is() -> None:
    assert str(UnknownDeviceError("cuda:9", ("cuda:0", "cpu"), "cuda:0", "named in the text")) == (
        'no device "cuda:9" here (named in the text); there are cuda:0, cpu - did you mean "cuda:0"?'
    )
    assert str(UnknownDeviceError("npu", (), None, "named in the text")) == (
        'no device "npu" here (named in the text); no devices were given'
    )


def test_missing_bytes_are_the_difference() -> None:
    error = NoRoomError(("cuda:1",), 15 * GIB, 12 * GIB)
    assert error.missing_bytes == 3 * GIB
    assert str(error) == (
        "cuda:1 would hold 15 GiB but has room for 12 GiB (free memory less reserve): 3 GiB (3221225472 bytes) are "
        "missing\nfree memory, lower the reserve, add a device, or use a smaller model"
    )


def test_several_devices_have_a_plural() -> None:
    assert "cuda:1 and cpu would hold 15 GiB but have room" in str(NoRoomError(("cuda:1", "cpu"), 15 * GIB, 12 * GIB))


@pytest.mark.parametrize("error", [error for error in ONE_OF_EACH if isinstance(error, NoSpaceError)])
def test_what_fits_is_part_of_the_sentence(error: NoSpaceError) -> None:
    assert str(error.with_suggestion("cpu,*")).endswith('\nthis would fit: "cpu,*"')
    helpless = error.with_suggestion(None)
    assert helpless.suggestion is None
    assert "this would fit" not in str(helpless)
    assert len(str(helpless).splitlines()) == 2
    assert {**vars(helpless), "suggestion": error.suggestion} == vars(error)


def test_two_compute_devices_are_both_named() -> None:
    assert 'computes on "cuda:0" but compute_device="cuda:1"' in str(ComputeDeviceError("cuda:0", "cuda:1"))
