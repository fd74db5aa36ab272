"""What an error advises leaves the planner its freedom: the device that computes is not filled to the brim."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alloc_spec import Auto, DeviceMemory, Free, NoSpaceError, parse, resolve

GIB = 2**30
MACHINE = {
    "cuda:0": DeviceMemory(total=24 * GIB, free=10 * GIB),
    "cuda:1": DeviceMemory(total=12 * GIB, free=11 * GIB),
    "cpu": DeviceMemory(total=64 * GIB, free=48 * GIB),
}


def advice(
    text: str,
    model_gib: int,
    *,
    devices: Mapping[str, DeviceMemory] = MACHINE,
    compute_device: str | None = "cuda:0",
) -> str | None:
    with pytest.raises(NoSpaceError) as caught:
        resolve(parse(text), model_bytes=model_gib * GIB, devices=devices, compute_device=compute_device)
    return caught.value.suggestion


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("cuda:0,12gb;cpu,*", "cuda:0,auto;cpu,*"),
        ("cuda:0,*;cpu,2gb", "cuda:0,auto;cpu,*"),
        ("cuda:1,4gb;cuda:0,80%", "cuda:1,4gb;cuda:0,auto;cpu,*"),
        ("cuda:0,75%;cpu,25%", "cuda:0,auto;cpu,free"),
        ("cuda:0,60%;cuda:1,40%", "cuda:0,auto;cuda:1,free"),
    ],
)
def test_the_device_that_computes_is_left_to_the_planner(text: str, suggestion: str) -> None:
    assert advice(text, 20) == suggestion


def test_nobody_computes_where_nobody_said_so() -> None:
    assert advice("cuda:0,12gb;cpu,*", 20, compute_device=None) == "cuda:0,free;cpu,*"


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("#cuda:0;1;cpu", "cuda:0,auto;cpu,*#cuda:0"),
        ("#cuda:0;1;cuda:1,cpu", "cuda:0,auto;cuda:1,*#cuda:0"),
        ("cuda:0,12gb;cpu,*#cuda:0", "cuda:0,auto;cpu,*#cuda:0"),
    ],
)
def test_the_same_for_controls_and_wire_strings(text: str, suggestion: str) -> None:
    assert advice(text, 20) == suggestion


def test_controls_that_only_lack_a_donor_stay_controls() -> None:
    assert advice("#cuda:0;12;cuda:1", 20) == "#cuda:0;12;cuda:1,cpu"


def test_controls_whose_donors_suffice_only_together_say_how_much_to_move() -> None:
    small = {name: DeviceMemory(total=8 * GIB, free=8 * GIB) for name in ("cuda:0", "cuda:1", "cpu")}
    assert advice("#cuda:0;1;cuda:1", 20, devices=small) == "#cuda:0;12;cuda:1,cpu"


gibibytes = st.integers(1, 64)
TEXTS = [
    "cuda:0,{n}gb;cpu,*",
    "cuda:0,*;cuda:1,1gb",
    "cuda:0,{n}%;cpu,10%",
    "#cuda:0;{n};cuda:1",
    "cuda:0,auto;cpu,1gb",
]


@given(st.sampled_from(TEXTS), gibibytes, gibibytes, gibibytes, gibibytes, gibibytes)
def test_no_advice_asks_for_all_that_is_free_where_the_model_computes(
    text: str, number: int, model: int, card: int, other: int, host: int
) -> None:
    devices = {
        name: DeviceMemory(total=64 * GIB, free=free * GIB)
        for name, free in (("cuda:0", card), ("cuda:1", other), ("cpu", host))
    }
    asked = parse(text.format(n=number))
    try:
        resolve(asked, model_bytes=model * GIB, devices=devices, compute_device="cuda:0")
    except NoSpaceError as error:
        assume(error.suggestion is not None)
        amounts = {entry.device: entry.amount for entry in parse(str(error.suggestion)).entries}
        assert not isinstance(amounts.get("cuda:0", Auto()), Free)
