"""Laws of what the words of the command line mean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_nodes.cli._arguments import (
    DeviceArgument,
    LinkArgument,
    read_count,
    read_device,
    read_device_name,
    read_link,
    read_positive,
    read_size,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("24gb", 24 * GIB), ("24 GiB", 24 * GIB), ("0.5g", GIB // 2), ("512mb", GIB // 2), ("1tb", 1024 * GIB), ("7b", 7)],
)
def test_sizes_are_those_of_the_allocation_grammar(text: str, size_bytes: int) -> None:
    assert read_size(text) == size_bytes


@given(st.integers(0, 2**50))
def test_every_number_of_bytes_can_be_written(size_bytes: int) -> None:
    assert read_size(f"{size_bytes}b") == size_bytes


@pytest.mark.parametrize(
    "text", ["", "24", "24parsecs", "-1gb", "nan", "25%", "0.5", "*", "5gb*", "auto", "1gb;cpu,2gb"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_size(text)


@pytest.mark.parametrize("text", ["25%", "24", "24gx", "", "1gb;cpu,2gb"])
def test_an_amount_that_is_no_size_is_told_what_a_size_is(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        read_size(text)
    assert str(refused.value) == f"{text!r} is no size; write a number and its unit, for example 24gb or 512mb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda:0=24gb,22gb", DeviceArgument(name="cuda:0", total_bytes=24 * GIB, free_bytes=22 * GIB)),
        (" CUDA:1 = 8gb , 1gb", DeviceArgument(name="cuda:1", total_bytes=8 * GIB, free_bytes=GIB)),
        ("cpu=64gb", DeviceArgument(name="cpu", total_bytes=64 * GIB, free_bytes=64 * GIB)),
        ("mps=0b,0b", DeviceArgument(name="mps", total_bytes=0, free_bytes=0)),
    ],
)
def test_devices_are_name_total_and_free(text: str, expected: DeviceArgument) -> None:
    assert read_device(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda:0", "write NAME=TOTAL"),
        ("cuda:0,24gb", "write NAME=TOTAL"),
        ("cuda:0=24gb,25gb", "more free memory than there is"),
        ("cuda:0=24gb,", "'' is no size"),
        ("=24gb", "'' is no name of a device; write one such as cuda:0 or cpu"),
        ("my gpu=24gb", "'my gpu' is no name of a device"),
        ("cuda:0=24", "'24' is no size; write a number and its unit"),
        ("cuda:0=24gb,1gb,1gb", "'1gb,1gb' is no size"),
    ],
)
def test_a_wrong_device_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read_device(text)


def test_a_link_is_a_donor_and_a_bandwidth() -> None:
    assert read_link("CPU=12.5") == LinkArgument(source="cpu", gb_per_second=12.5)


@pytest.mark.parametrize("text", ["cpu", "cpu=", "cpu=fast", "cpu=0", "cpu=-3", "cpu=inf", "cpu=nan", "=5"])
def test_a_wrong_link_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_link(text)


def test_device_names_are_canonical() -> None:
    assert read_device_name("CUDA:3") == "cuda:3"


@pytest.mark.parametrize("text", ["", "cuda:", "cuda:00", "my gpu", "cpu,1gb;cuda:0", "cpu;cuda:0"])
def test_what_is_no_device_name_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_device_name(text)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_positive_numbers_are_read_exactly(number: float) -> None:
    assert read_positive(repr(number)) == number


@given(st.integers(1, 10**9))
def test_counts_are_read_exactly(number: int) -> None:
    assert read_count(str(number)) == number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "one", "²"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_count(text)


@pytest.mark.parametrize("reader", [read_size, read_device, read_link, read_device_name, read_positive, read_count])
@given(text=st.text(max_size=30))
def test_any_text_is_read_or_refused_in_words(reader: Callable[[str], object], text: str) -> None:
    try:
        value = reader(text)
    except argparse.ArgumentTypeError as error:
        assert str(error).strip()
    else:
        assert not (isinstance(value, float) and math.isnan(value))
