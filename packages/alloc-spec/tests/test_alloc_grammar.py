"""The grammar, dialect by dialect, token by token."""

from decimal import Decimal

import pytest

from alloc_spec import (
    AllocRuleError,
    AllocSyntaxError,
    AllocValueError,
    Amount,
    Auto,
    Bytes,
    DeviceFraction,
    Dialect,
    Donated,
    Entry,
    Free,
    Percent,
    Rest,
    parse,
    parse_wire,
)

GIB = 2**30
MIB = 2**20


def refused(text: str) -> AllocSyntaxError:
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2.5gb", Bytes(size_bytes=5 * GIB // 2)),
        ("0b", Bytes(size_bytes=0)),
        (".5k", Bytes(size_bytes=512)),
        ("1.5b", Bytes(size_bytes=2)),
        ("25%", Percent(percent=Decimal(25))),
        ("0.125%", Percent(percent=Decimal("0.125"))),
        ("0.5", DeviceFraction(fraction=Decimal("0.5"))),
        ("0", DeviceFraction(fraction=Decimal(0))),
        ("1", DeviceFraction(fraction=Decimal(1))),
        ("1.000", DeviceFraction(fraction=Decimal(1))),
        ("*", Rest()),
        ("5gb*", Rest(expected_bytes=5 * GIB)),
        ("free", Free()),
        ("free-1gb", Free(keep_bytes=GIB)),
        ("free-0mb", Free()),
        ("auto", Auto()),
    ],
)
def test_each_kind_of_amount_has_its_type(text: str, amount: Amount) -> None:
    assert parse(f"cuda:0,{text};cuda:1,1%").entries[0] == Entry(device="cuda:0", amount=amount)


@pytest.mark.parametrize(
    ("unit", "size"),
    [("b", 1)]
    + [
        (unit + ending, 1024**power)
        for power, unit in enumerate("kmgt", start=1)
        for ending in ("", "b", "ib", "B", "iB")
    ],
)
def test_units_have_base_1024_and_no_case(unit: str, size: int) -> None:
    for spelling in (unit, unit.upper(), unit.capitalize()):
        assert parse(f"cpu,3{spelling}").entries[0].amount == Bytes(size_bytes=3 * size)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("cuda:0,2.5gb;cpu,*", Dialect.BYTES),
        ("cuda:0,500mb;cuda:1,3.0g;cpu,5gb*", Dialect.BYTES),
        ("cuda:0,2gb", Dialect.BYTES),
        ("cpu,*", Dialect.BYTES),
        ("cuda:0,8%;cuda:1,8%;cpu,4%", Dialect.RATIO),
        ("cuda:0,0.1;cpu,0.5", Dialect.FRACTION),
        ("cuda:0,0.1;cpu,*", Dialect.FRACTION),
        ("cuda:0,50%;cpu,*", Dialect.MIXED),
        ("cuda:0,2gb;cuda:1,25%;cpu,*", Dialect.MIXED),
        ("cuda:0,free-1gb", Dialect.MIXED),
        ("cuda:0,auto", Dialect.MIXED),
        ("cuda:0,1gb;cpu,0.5", Dialect.MIXED),
        ("#cuda:0;4;cpu", Dialect.CONTROLS),
        ("cuda:0,8%;cpu,4%#cuda:0;4;cpu", Dialect.RATIO),
    ],
)
def test_the_kinds_of_the_amounts_make_the_dialect(text: str, dialect: Dialect) -> None:
    assert parse(text).dialect is dialect


def test_the_dialect_compares_with_its_name() -> None:
    assert parse("cpu,1gb").dialect == "bytes"


@pytest.mark.parametrize(
    "name", ["cpu", "mps", "cuda:0", "xpu:15", "mlu:0", "privateuseone:3", "auto", "free:1", "a_b2"]
)
def test_any_type_with_or_without_index_is_a_device_name(name: str) -> None:
    assert parse(f"{name},1gb").devices == (name,)


def test_devices_keep_the_order_of_the_text() -> None:
    assert parse("cuda:2,1%;cpu,1%;cuda:10,1%;cuda:1,1%").devices == ("cuda:2", "cpu", "cuda:10", "cuda:1")


def test_case_and_spaces_do_not_matter_and_the_source_is_kept() -> None:
    text = "\n CUDA : 0 ,\t2.5 GiB ; Cuda:1,FREE - 1 Gb;xpu,Auto; CPU,5 gB * ; "
    spec = parse(text)
    assert spec == parse("cuda:0,2.5gb;cuda:1,free-1gb;xpu,auto;cpu,5gb*")
    assert spec.source == text


@pytest.mark.parametrize("text", ["cpu,2 5gb", "cu da,1gb", "cuda:1 0,1gb", "cpu,2. 5gb", "cpu,1g b", "cpu,au to"])
def test_spaces_inside_a_token_are_errors(text: str) -> None:
    refused(text)


def test_one_semicolon_at_the_end_does_no_harm() -> None:
    assert parse("cuda:0,1gb;cpu,*;") == parse("cuda:0,1gb;cpu,*")
    assert refused("cuda:0,1gb;cpu,*;;").span == (17, 18)
    assert refused("cuda:0,1gb;;cpu,*").suggestion == "cuda:0,1gb;cpu,*"


@pytest.mark.parametrize(
    ("text", "span", "message"),
    [
        ("", (0, 0), "expected a device name, found the end"),
        ("   ", (3, 3), "expected a device name, found the end"),
        ("cuda:0", (6, 6), "expected ',' after the device 'cuda:0', found the end"),
        ("cuda:0,", (7, 7), "expected an amount, found the end"),
        ("cuda:,2gb", (5, 6), "expected an index after 'cuda:', found ','"),
        ("cuda:x,2gb", (5, 6), "expected an index after 'cuda:', found 'x'"),
        ("cuda:0.5,2gb", (5, 8), "expected an index after 'cuda:', found '0.5'"),
        ("cuda:007,2gb", (5, 8), "expected an index without leading zeros, found '007'"),
        ("2gb,cuda:0", (0, 1), "expected a device name, found '2'"),
        ("cuda:0,2 parsecs", (9, 16), "expected a unit after '2', found 'parsecs'"),
        ("cuda:0,1e3", (8, 10), "expected a unit after '1', found 'e3'"),
        ("cuda:0,2gb cpu,*", (11, 14), "expected ';' or the end after an amount, found 'cpu'"),
        ("cuda:0,50%*;cpu,1gb", (10, 11), "expected ';' or the end after an amount, found '*'"),
        ("cuda:0,free-;cpu,*", (12, 13), "expected the size that stays free, found ';'"),
        ("cuda:0,free-50%", (14, 15), "expected a unit after '50', found '%'"),
        ("cuda:0,free1gb", (7, 14), "expected an amount, found 'free1gb'"),
        ("cuda:0,+1gb", (7, 8), "expected an amount, found '+'"),
        ("cuda:0,\u0664gb", (7, 8), "expected an amount, found '\u0664'"),
        ("\u212aing:0,1gb", (0, 1), "expected a device name, found '\u212a'"),
        ("_x,1gb", (0, 1), "expected a device name, found '_'"),
        ("cuda:0,2.gb", (8, 9), "expected ';' or the end after an amount, found '.'"),
        ("#", (1, 1), "expected the compute device, found the end"),
        ("#cuda:0", (7, 7), "expected ';' after the compute device, found the end"),
        ("#cuda:0;;cpu", (8, 9), "expected the gigabytes to move, found ';'"),
        ("#cuda:0;-1;cpu", (8, 9), "expected the gigabytes to move, found '-'"),
        ("#cuda:0;4gb;cpu", (9, 11), "expected ';' after the gigabytes, found 'gb'"),
        ("#cuda:0;4;", (10, 10), "expected a donor device, found the end"),
        ("#cuda:0;4;cpu,", (14, 14), "expected a donor device, found the end"),
        ("#cuda:0;4;cpu;", (13, 14), "expected the end after the donors, found ';'"),
        ("cpu,1gb#cuda:0;4;cpu#", (20, 21), "expected the end after the donors, found '#'"),
        ("cpu,1gb##", (8, 9), "expected the compute device, found '#'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(text: str, span: tuple[int, int], message: str) -> None:
    error = refused(text)
    assert not isinstance(error, AllocRuleError)
    assert (error.span, error.message, error.source) == (span, message, text)
    assert error.hint


@pytest.mark.parametrize(
    ("text", "part", "message"),
    [
        ("cpu,1gb;cuda:0,*;CPU,2gb", "CPU", "cpu is named twice"),
        ("cuda:0,1gb*;cpu,2gb*", "2gb*", "two devices cannot both take the rest"),
        ("cuda:0,0%;cpu,0.0 %", "0.0 %", "the shares add up to 0 %"),
        ("cuda:0,60%;cuda:1,41%;cpu,*", "41%", "the percentages add up to more than 100 % of the model"),
        ("cuda:0,1.01;cpu,*", "1.01", "1.01 is not a fraction of a device's memory, which goes from 0 to 1"),
        ("cuda:0,9999999999tb;cpu,*", "9999999999tb", "a size beyond 8 EiB"),
        ("#cuda:0;99999999999;cpu", "99999999999", "a size beyond 8 EiB"),
        ("cuda:0,free-9999999999 tb", "9999999999 tb", "a size beyond 8 EiB"),
        (f"cuda:0,{'1' * 41}gb", "1" * 41, "a number of 41 characters"),
        (f"cuda:0,0.{'1' * 40}", f"0.{'1' * 40}", "a number of 42 characters"),
        (f"cuda:0,{'1' * 5000}%", "1" * 5000, "a number of 5000 characters"),
        ("#cuda:0;4;cpu,cuda:1,cpu", "cpu", "the donor cpu is named twice"),
        ("#cuda:0;4;cpu,cuda:0", "cuda:0", "cuda:0 computes and cannot be its own donor"),
    ],
)
def test_what_contradicts_itself_is_named_with_its_place(text: str, part: str, message: str) -> None:
    error = refused(text)
    assert isinstance(error, AllocRuleError)
    assert error.message == message
    assert error.span == (text.rindex(part), text.rindex(part) + len(part))


def test_percentages_of_exactly_100_leave_the_rest_nothing() -> None:
    assert parse("cuda:0,60%;cuda:1,40%;cpu,*").dialect is Dialect.MIXED


def test_the_largest_size_is_read_and_the_next_refused() -> None:
    assert parse(f"cpu,{2**63 - 1}b").entries[0].amount == Bytes(size_bytes=2**63 - 1)
    assert refused(f"cpu,{2**63}b").message == "a size beyond 8 EiB"


@pytest.mark.parametrize("number", ["1" * 40, "0." + "1" * 38, "0" * 40])
def test_a_number_of_40_characters_is_the_longest(number: str) -> None:
    assert parse(f"cuda:0,{number}%;mps,100%").entries[0].amount == Percent(percent=Decimal(number))
    assert refused(f"cuda:0,{number}0%;mps,100%").message == "a number of 41 characters"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cuda:0,1e3", "exponents are not read; write the number out, with a unit"),
        ("cuda:0,1e", "units are b, kb, mb, gb and tb"),
        ("cuda:0,1eb", "units are b, kb, mb, gb and tb"),
        ("cuda:0,-1gb", "an amount cannot be negative"),
        ("cuda:0,some", "an amount is 2.5gb, 25%, 0.5, *, 5gb*, free-1gb or auto"),
        ("cuda:0,0.5 cpu,0.5", "entries are separated by ';'"),
        ("#cuda:0;4 cpu", "the wire form is EXPERT#COMPUTE;GB;DONOR1,DONOR2; GB has no unit"),
    ],
)
def test_the_hint_goes_with_the_mistake(text: str, hint: str) -> None:
    found = refused(text).hint
    assert found is not None
    assert found.partition(" - did you mean")[0] == hint


def test_the_wire_string_without_an_expert_part_is_the_controls() -> None:
    spec = parse_wire(" # CUDA:0 ; 4.5 ; cuda:1 , cpu ")
    assert spec.compute_device == "cuda:0"
    assert spec.entries == (
        Entry(device="cuda:0", amount=Rest()),
        Entry(device="cuda:1", amount=Donated(total_bytes=9 * GIB // 2)),
        Entry(device="cpu", amount=Donated(total_bytes=9 * GIB // 2)),
    )


@pytest.mark.parametrize("tail", ["cuda:0;4;cpu", "cuda:0;0;cuda:0", "cuda:0"])
def test_an_expert_part_wins_and_the_compute_device_is_kept(tail: str) -> None:
    spec = parse_wire(f"cuda:1,2gb;cpu,*;#{tail}")
    assert spec.entries == parse("cuda:1,2gb;cpu,*").entries
    assert spec.compute_device == "cuda:0"
    assert str(spec) == "cuda:1,2gb;cpu,*#cuda:0"


def test_an_expert_part_alone_may_end_in_a_hash() -> None:
    assert parse_wire("cuda:1,2gb;cpu,*#") == parse("cuda:1,2gb;cpu,*")


def test_parse_reads_the_wire_string_too() -> None:
    for text in ("#cuda:0;4;cpu", "cpu,1gb#cuda:0;4;cpu"):
        assert parse(text) == parse_wire(text)


def test_parse_wire_insists_on_the_hash() -> None:
    with pytest.raises(AllocSyntaxError, match="expected '#' after the expert part, found the end") as caught:
        parse_wire("cuda:0,2gb;cpu,*")
    assert caught.value.span == (16, 16)


@pytest.mark.parametrize("text", [None, 4, b"cpu,1gb", ["cpu,1gb"]])
def test_only_text_is_text(text: object) -> None:
    with pytest.raises(AllocValueError, match="pass a str"):
        parse(text)  # type: ignore[arg-type]


def test_a_long_text_is_read_and_a_long_wrong_one_refused_without_a_search() -> None:
    long = ";".join(f"cuda:{index},1kb" for index in range(2000))
    assert len(parse(long).entries) == 2000
    error = refused(long + ",cpu,*")
    assert error.suggestion is None
    assert error.span == (len(long), len(long) + 1)
