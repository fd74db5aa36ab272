"""Specifications built by hand: what can exist, and its canonical text."""

import copy
import dataclasses
import pickle
from decimal import Decimal

import pytest

from alloc_spec import (
    AllocationSpec,
    AllocValueError,
    Amount,
    Auto,
    Bytes,
    DeviceFraction,
    DeviceMemory,
    Donated,
    Entry,
    Free,
    Percent,
    Rest,
    parse,
)

GIB = 2**30


def spec(**amounts: Amount) -> AllocationSpec:
    return AllocationSpec(
        entries=tuple(Entry(device=name.replace("_", ":"), amount=amount) for name, amount in amounts.items())
    )


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (spec(cuda_0=Bytes(size_bytes=5 * GIB // 2), cpu=Rest()), "cuda:0,2.5gb;cpu,*"),
        (spec(cpu=Rest(expected_bytes=5 * GIB)), "cpu,5gb*"),
        (spec(cuda_0=Percent(percent=Decimal("8.50")), cpu=Percent(percent=Decimal(4))), "cuda:0,8.5%;cpu,4%"),
        (spec(cuda_0=Percent(percent=Decimal("1E+1"))), "cuda:0,10%"),
        (
            spec(cuda_0=DeviceFraction(fraction=Decimal("0.10")), mps=DeviceFraction(fraction=Decimal(0))),
            "cuda:0,0.1;mps,0",
        ),
        (spec(cuda_0=Free(), cuda_1=Free(keep_bytes=GIB), cpu=Auto()), "cuda:0,free;cuda:1,free-1gb;cpu,auto"),
    ],
)
def test_a_specification_has_one_text_that_reads_back(built: AllocationSpec, text: str) -> None:
    assert str(built) == text
    assert parse(text) == built


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("CUDA:0, 2560 MB; cpu, *;", "cuda:0,2.5gb;cpu,*"),
        ("cuda:0,8.00%;cpu,.5%", "cuda:0,8%;cpu,0.5%"),
        ("cuda:0,1.0", "cuda:0,1"),
        ("cuda:0,FREE - 1024 kib;cpu,*", "cuda:0,free-1mb;cpu,*"),
        (" # cuda:0 ; 04.50 ; cpu", "#cuda:0;4.5;cpu"),
        ("cpu,1gb # cuda:0;4;cpu", "cpu,1gb#cuda:0"),
        ("cpu,1gb#", "cpu,1gb"),
    ],
)
def test_texts_that_mean_the_same_have_the_same_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


def test_the_source_does_not_make_a_difference() -> None:
    first, second = parse("cpu,1GB"), parse(" cpu , 1024mb")
    assert first.source != second.source
    assert first == second
    assert hash(first) == hash(second)


def test_a_specification_survives_pickling_and_copying() -> None:
    for text in ("cuda:0,2gb;cuda:1,25%;xpu,0.5;mps,free-1gb;npu,auto;cpu,5gb*", "#cuda:0;4;cuda:1,cpu"):
        read = parse(text)
        assert pickle.loads(pickle.dumps(read)) == copy.deepcopy(read) == read


def test_a_specification_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("cpu,1gb").compute_device = "cuda:0"  # type: ignore[misc]


def test_the_device_with_the_wildcard_is_known() -> None:
    assert parse("cuda:0,2gb;cpu,*").rest_device == "cpu"
    assert parse("cuda:0,5gb*;cpu,1gb").rest_device == "cuda:0"
    assert parse("cuda:0,2gb").rest_device is None
    assert parse("#cuda:0;4;cpu").rest_device == "cuda:0"


@pytest.mark.parametrize(
    "name", ["CUDA:0", "cuda:", "cuda:00", "cuda:-1", ":0", "", "a b", "0", "cuda:0\n", "cpu,", None]
)
def test_device_names_of_entries_are_canonical(name: str) -> None:
    with pytest.raises(AllocValueError, match="a device name is lower-case"):
        Entry(device=name, amount=Rest())
    with pytest.raises(AllocValueError, match="device"):
        AllocationSpec(entries=(Entry(device="cpu", amount=Rest()),), compute_device=name or "")


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, None, "1gb"])
def test_sizes_are_whole_numbers_in_range(value: int) -> None:
    for build in (
        lambda: Bytes(size_bytes=value),
        lambda: Free(keep_bytes=value),
        lambda: Donated(total_bytes=value),
        lambda: DeviceMemory(total=value, free=0),
        lambda: DeviceMemory(total=10, free=value),
        lambda: DeviceMemory(total=10, free=10, reserve=value),
    ):
        with pytest.raises(AllocValueError) as caught:
            build()
        assert caught.value.value is value
    if value is not None:
        with pytest.raises(AllocValueError):
            Rest(expected_bytes=value)


@pytest.mark.parametrize(
    "value", [Decimal(-1), Decimal("-0"), Decimal("nan"), Decimal("inf"), Decimal("1E-50"), Decimal("1E50"), 0.5, 1]
)
def test_shares_are_plain_decimals(value: Decimal) -> None:
    with pytest.raises(AllocValueError):
        Percent(percent=value)
    with pytest.raises(AllocValueError):
        DeviceFraction(fraction=value)


def test_a_fraction_is_at_most_1() -> None:
    with pytest.raises(AllocValueError, match="no more than all of its memory"):
        DeviceFraction(fraction=Decimal("1.0001"))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ((), "at least one entry"),
        ((Entry(device="cpu", amount=Auto()), Entry(device="cpu", amount=Auto())), "cpu is named twice"),
        ((Entry(device="cpu", amount=Rest()), Entry(device="mps", amount=Rest())), "cannot both take the rest"),
        ((Entry(device="cpu", amount=Percent(percent=Decimal(0))),), "add up to 0 %"),
        (
            (Entry(device="cpu", amount=Percent(percent=Decimal("100.01"))), Entry(device="mps", amount=Rest())),
            "more than 100 %",
        ),
    ],
)
def test_entries_that_contradict_each_other_make_no_specification(entries: tuple[Entry, ...], reason: str) -> None:
    with pytest.raises(AllocValueError, match=reason):
        AllocationSpec(entries=entries)


def donors(*totals: int) -> tuple[Entry, ...]:
    return tuple(
        Entry(device=f"cuda:{index}", amount=Donated(total_bytes=total)) for index, total in enumerate(totals, 1)
    )


@pytest.mark.parametrize(
    ("compute_device", "entries"),
    [
        (None, (Entry(device="cuda:0", amount=Rest()), *donors(GIB))),
        ("cuda:5", (Entry(device="cuda:0", amount=Rest()), *donors(GIB))),
        ("cuda:0", (Entry(device="cuda:0", amount=Bytes(size_bytes=1)), *donors(GIB))),
        ("cuda:0", (Entry(device="cuda:0", amount=Rest(expected_bytes=1)), *donors(GIB))),
        ("cuda:0", (Entry(device="cuda:0", amount=Rest()), *donors(GIB, 2 * GIB))),
        ("cuda:0", (Entry(device="cuda:0", amount=Rest()), *donors(GIB), Entry(device="cpu", amount=Auto()))),
        ("cuda:1", donors(GIB)),
    ],
)
def test_controls_have_one_form(compute_device: str | None, entries: tuple[Entry, ...]) -> None:
    with pytest.raises(AllocValueError, match="use from_controls"):
        AllocationSpec(entries=entries, compute_device=compute_device)


def test_the_room_of_a_device_is_free_less_reserve() -> None:
    assert DeviceMemory(total=10, free=8, reserve=3).room == 5
    assert DeviceMemory(total=10, free=2, reserve=3).room == 0


def test_more_free_than_there_is_cannot_be() -> None:
    with pytest.raises(AllocValueError, match="free = 11: more than the total of 10 bytes"):
        DeviceMemory(total=10, free=11)
