"""What comes from outside has limits, checked before any work; messages quote at most a line."""

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from alloc_spec import (
    AllocSpecError,
    AllocSyntaxError,
    AllocValueError,
    Bytes,
    DeviceFraction,
    DeviceMemory,
    Percent,
    UnknownDeviceError,
    explain,
    from_controls,
    parse,
    parse_wire,
    resolve,
)

LONGEST = 2**16
PIECES = ["cuda:0,", "a", "1", ",", ";", "#", "cuda:0,1b;", "\n", "%", "cpu,1gb,run;", "free-", "é", ":0"]


def donors(text: str) -> object:
    return from_controls(compute_device="cuda:0", virtual_ram_gb=1, donor_device=text)


@pytest.mark.parametrize("read", [parse, parse_wire, explain, donors])
@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_of_text_is_refused_before_any_work(read: Callable[[str], object], piece: str) -> None:
    text = piece * (2**20 // len(piece))
    start = time.process_time()
    with pytest.raises(AllocSyntaxError, match=f"a text of {len(text)} characters") as caught:
        read(text)
    assert len(str(caught.value)) < 500
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("piece", PIECES)
def test_the_longest_text_is_answered_in_a_few_lines(piece: str) -> None:
    text = (piece * LONGEST)[:LONGEST]
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    assert max(map(len, str(caught.value).splitlines())) < 200
    assert len(str(caught.value).splitlines()) <= 4


def test_the_longest_allocation_is_read_and_a_machine_refuses_it_in_a_line() -> None:
    text = ";".join(f"d:{index},1b" for index in range(6400))
    assert LONGEST - 4000 < len(text) <= LONGEST
    start = time.process_time()
    spec = parse(text)
    assert str(spec) == text
    with pytest.raises(UnknownDeviceError) as caught:
        resolve(spec, model_bytes=6400, devices={"cpu": DeviceMemory(total=1, free=1)})
    assert len(str(caught.value)) < 300
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["a" * 65, "a" * 60 + ":12345", "a" * 50_000])
def test_a_long_device_name_is_refused(name: str) -> None:
    with pytest.raises(AllocSyntaxError, match="a device name of") as caught:
        parse(f"{name},1gb")
    assert max(map(len, str(caught.value).splitlines())) < 200
    assert parse("a" * 64 + ",1gb").devices == ("a" * 64,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bytes(size_bytes=10**5000),
        lambda: DeviceMemory(total=10**5000, free=1),
        lambda: DeviceMemory(total=float("nan"), free=1),  # type: ignore[arg-type]
        lambda: DeviceMemory(total=5, free=True),
        lambda: Percent(percent=Decimal("1e999999999")),
        lambda: Percent(percent=Decimal("1e-999999999")),
        lambda: Percent(percent=Decimal("nan")),
        lambda: DeviceFraction(fraction=Decimal("0e-999999")),
        lambda: from_controls(compute_device="cuda:0", virtual_ram_gb=10**5000),
        lambda: from_controls(compute_device="cuda:0", virtual_ram_gb=float("inf")),
        lambda: from_controls(compute_device="cuda:0", virtual_ram_gb=True),
        lambda: parse(b"cpu,*"),  # type: ignore[arg-type]
        lambda: parse(["x"] * 10**6),  # type: ignore[arg-type]
    ],
)
def test_an_odd_value_is_refused_by_name_in_a_line(make: Callable[[], Any]) -> None:
    with pytest.raises(AllocValueError) as caught:
        make()
    assert isinstance(caught.value, AllocSpecError)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("cuda0,6gb;cpu,*", "'cuda0' is not the usual name of a device - did you mean \"cuda:0,6gb;cpu,*\"?"),
        ("gpu:0,6gb;cpu,*", 'did you mean "cuda:0,6gb;cpu,*"?'),
        ("gpu,auto;gpu:1,2gb,run;cpu0,*", 'did you mean "cuda:0,auto;cuda:1,2gb,run;cpu,*"?'),
        ("cuda,6gb", 'did you mean "cuda:0,6gb"?'),
        ("gpu:0,6gb;cuda:0,*", "did you mean cuda:0?"),
        ("#gpu:0;4;cpu", "did you mean cuda:0?"),
    ],
)
def test_an_unusual_device_name_is_questioned(text: str, question: str) -> None:
    assert question in explain(text)


@pytest.mark.parametrize("text", ["cuda:0,6gb;cpu,*", "xpu:1,*", "mps,*", "card:0,1gb", "privateuseone:0,*", "dml:0,*"])
def test_a_usual_or_unknown_device_name_is_not(text: str) -> None:
    assert "did you mean" not in explain(text)


@pytest.mark.parametrize("name", ["gpu:0", "cuda0", "nvidia", "cuda", "cudaa:0"])
def test_a_machine_without_that_device_suggests_the_usual_name(name: str) -> None:
    machine = {known: DeviceMemory(total=1, free=1) for known in ("cuda:1", "cuda:0", "cpu")}
    with pytest.raises(UnknownDeviceError, match='did you mean "cuda:0"'):
        resolve(parse(f"{name},*"), model_bytes=1, devices=machine)
