"""The inputs of a placement under every name that they have had."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_testing import DEVICES

from comfy_nodes.nodes._controls import FIELD_OF, IGNORED, Controls, other_memory, read_controls
from comfy_nodes.nodes._errors import ConflictingInputsError, InputValueError, NodeError

names = st.sampled_from(["cuda:0", "cuda:1", "cpu"])
gigabytes = st.floats(0, 128, allow_nan=False)
expert = st.sampled_from(["", "cuda:0,2gb;cpu,*", "auto"])


@st.composite
def controls_in_two_namings(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same controls, once under today's names and once under others."""
    compute, moved, text, eject = draw(names), draw(gigabytes), draw(expert), draw(st.booleans())
    others = draw(st.booleans())
    donors = ",".join(other_memory(DEVICES, compute) if others else ["cpu"])
    today = {
        "compute_device": compute,
        "virtual_ram_gb": moved,
        "donor_device": donors,
        "expert_mode_allocations": text,
        "eject_models": eject,
    }
    older = {
        "device": compute,
        "virtual_vram_gb": moved,
        draw(st.sampled_from(["use_other_vram", "donor_device"])): others,
        "allocations": text,
        "keep_loaded": not eject,
    }
    return today, older


@settings(deadline=None)
@given(controls_in_two_namings())
def test_a_name_does_not_change_the_meaning(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    today, older = pair
    assert read_controls(older, DEVICES) == read_controls(today, DEVICES)


@settings(deadline=None)
@given(controls_in_two_namings(), st.randoms(use_true_random=False))
def test_saying_it_twice_the_same_way_is_no_conflict_in_any_order(
    pair: tuple[dict[str, Any], dict[str, Any]], random: Any
) -> None:
    today, older = pair
    items = list((today | {name: value for name, value in older.items() if name not in today}).items())
    random.shuffle(items)
    assert read_controls(dict(items), DEVICES) == read_controls(today, DEVICES)


def test_nothing_said_is_nothing_read() -> None:
    assert read_controls({}, DEVICES) == Controls()
    assert read_controls({"unet_name": "a", "model": object(), "donor_device": None}, DEVICES) == Controls()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("compute_device", "cuda:0"), ("device", "cuda:1")),
        (("virtual_ram_gb", 4.0), ("virtual_vram_gb", 6.0)),
        (("donor_device", "cuda:1"), ("use_other_vram", False)),
        (("expert_mode_allocations", "cuda:0,2gb;cpu,*"), ("allocations", "cpu,*")),
        (("eject_models", True), ("keep_loaded", True)),
    ],
)
def test_two_names_that_differ_are_both_named(first: tuple[str, Any], second: tuple[str, Any]) -> None:
    with pytest.raises(ConflictingInputsError) as caught:
        read_controls(dict([first, second]), DEVICES)
    assert {caught.value.first, caught.value.second} == {first[0], second[0]}
    for name, value in (first, second):
        assert f"{name} = {value!r}" in str(caught.value)


def test_an_empty_text_conflicts_with_a_full_one() -> None:
    with pytest.raises(ConflictingInputsError):
        read_controls({"expert_mode_allocations": "", "allocations": "cpu,*"}, DEVICES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compute_device", 0),
        ("device", True),
        ("virtual_ram_gb", "4"),
        ("virtual_ram_gb", True),
        ("virtual_vram_gb", "cuda:0,0.15;cpu,0.5"),
        ("donor_device", 3),
        ("use_other_vram", "yes"),
        ("eject_models", 1),
        ("keep_loaded", "true"),
        ("expert_mode_allocations", ["4", 0]),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputValueError) as caught:
        read_controls({name: value}, DEVICES)
    assert isinstance(caught.value, NodeError)
    assert (caught.value.name, caught.value.value) == (name, value)
    assert str(caught.value).startswith(f"{name} = {value!r}: give ")


def test_several_donors_in_one_text_keep_their_order() -> None:
    assert read_controls({"donor_device": " cuda:1 , cpu"}, DEVICES).donors == ("cuda:1", "cpu")


def test_the_compute_device_is_never_among_the_other_memory() -> None:
    assert read_controls({"use_other_vram": True, "device": "cuda:1"}, DEVICES).donors == ("cuda:0", "cpu")
    assert read_controls({"donor_device": True, "compute_device": "cuda:0"}, DEVICES).donors == ("cuda:1", "cpu")
    assert read_controls({"use_other_vram": True, "device": "cpu"}, DEVICES).donors == ("cuda:0", "cuda:1")
    assert read_controls({"use_other_vram": True, "device": "cpu"}, ["cpu"]).donors == ("cpu",)
    assert read_controls({"use_other_vram": True}, DEVICES).donors == ("cuda:1", "cpu")


def test_what_means_nothing_any_more_is_no_control() -> None:
    assert not set(FIELD_OF) & IGNORED
    assert read_controls({"high_precision_loras": "whatever"}, DEVICES) == Controls()
