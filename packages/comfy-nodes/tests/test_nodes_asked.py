"""From a node's inputs to the placement that is asked for."""

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_testing import DEVICES

from alloc_spec import AllocSpecError, AllocSyntaxError, AllocValueError, parse
from comfy_nodes.host import PlacementRequest
from comfy_nodes.nodes._controls import Controls
from comfy_nodes.nodes.running._request import check_expert, placement, request_for
from comfy_nodes.nodes.table._table import TABLE

STANDARD = TABLE["UNETLoaderDisTorchMultiGPU"]
PLAIN = TABLE["UNETLoaderMultiGPU"]
LEGACY = TABLE["CLIPLoaderGGUFDisTorchMultiGPU"]


def request(devices: tuple[str, ...] = DEVICES, **inputs: Any) -> PlacementRequest:
    return request_for(STANDARD, inputs, devices)


def test_a_new_node_moves_its_default_to_the_cpu() -> None:
    assert request() == PlacementRequest(compute_device="cuda:0", allocation=parse("#cuda:0;4;cpu"))


def test_a_new_legacy_node_moves_its_default_to_the_cpu() -> None:
    assert request_for(LEGACY, {}, DEVICES).allocation == parse("#cuda:0;4;cpu")


def test_a_plain_node_places_nothing_whatever_it_is_given() -> None:
    inputs = {"device": "cuda:1", "expert_mode_allocations": "cpu,*"}
    assert request_for(PLAIN, inputs, DEVICES) == PlacementRequest(compute_device="cuda:1")


def test_a_plain_node_without_a_device_leaves_it_to_the_host() -> None:
    assert request_for(PLAIN, {}, DEVICES) == PlacementRequest()


def test_nothing_moved_is_no_allocation() -> None:
    assert request(virtual_ram_gb=0.0, compute_device="cuda:1") == PlacementRequest(compute_device="cuda:1")


def test_a_text_decides_alone() -> None:
    asked = request(virtual_ram_gb=9.0, donor_device="cuda:1", expert_mode_allocations=" cuda:0,2gb;cpu,* ")
    assert asked.allocation == parse("cuda:0,2gb;cpu,*")
    assert asked.compute_device == "cuda:0"


def test_a_compute_device_in_the_text_wins_over_the_list() -> None:
    asked = request(compute_device="cuda:0", expert_mode_allocations="#cuda:1;4;cpu")
    assert asked.compute_device == "cuda:1"


@pytest.mark.parametrize("text", ["auto", " AUTO ", "Auto"])
def test_the_choice_can_be_left_to_us(text: str) -> None:
    assert request(expert_mode_allocations=text).allocation == "auto"


@pytest.mark.parametrize("text", ["", "  ", "#", "##"])
def test_an_empty_text_leaves_the_controls(text: str) -> None:
    assert request(expert_mode_allocations=text, virtual_ram_gb=0.0).allocation is None
    assert request(expert_mode_allocations=text, virtual_ram_gb=4.0).allocation == parse("#cuda:0;4;cpu")


def test_donors_are_filled_in_their_order() -> None:
    assert request(donor_device="cuda:1,cpu", virtual_ram_gb=14.0).allocation == parse("#cuda:0;14;cuda:1,cpu")


def test_a_donor_that_computes_is_refused() -> None:
    with pytest.raises(AllocValueError, match=r"cuda:1 computes and cannot be its own donor"):
        request(compute_device="cuda:1", donor_device="cuda:1")
    with pytest.raises(AllocValueError, match=r"cpu computes"):
        request(compute_device="cpu", donor_device="cpu")


def test_a_machine_with_the_cpu_alone_keeps_the_model_there_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert request(devices=("cpu",)) == PlacementRequest(compute_device="cpu")
    assert "no device but cpu" in caplog.text


def test_a_text_is_not_bent_on_a_machine_with_the_cpu_alone() -> None:
    asked = request(devices=("cpu",), expert_mode_allocations="cuda:0,2gb;cpu,*")
    assert asked.allocation == parse("cuda:0,2gb;cpu,*")


@pytest.mark.parametrize("gigabytes", [-1.0, float("nan"), float("inf"), 1e12])
def test_an_amount_that_cannot_be_is_refused(gigabytes: float) -> None:
    with pytest.raises(AllocValueError, match="virtual_ram_gb"):
        request(virtual_ram_gb=gigabytes)


def test_room_is_made_as_the_node_says_unless_the_workflow_does() -> None:
    distorch2, encoder = TABLE["UNETLoaderDisTorch2MultiGPU"], TABLE["CLIPLoaderDisTorch2MultiGPU"]
    assert request_for(distorch2, {}, DEVICES).eject_models is True
    assert request_for(encoder, {}, DEVICES).eject_models is False
    assert request_for(distorch2, {"eject_models": False}, DEVICES).eject_models is False
    assert request_for(encoder, {"keep_loaded": False}, DEVICES).eject_models is True
    assert request().eject_models is False


def test_placement_fills_what_is_not_said() -> None:
    assert placement(Controls(), DEVICES, default_gb=2.0).allocation == parse("#cuda:0;2;cpu")


def test_a_bad_text_is_shown_with_its_place() -> None:
    assert check_expert("cuda:0,2gb,cpu,*") == (
        "expected ';' or the end after an amount, found ','\n"
        "    cuda:0,2gb,cpu,*\n"
        "              ^\n"
        "entries are separated by ';' - did you mean \"cuda:0,2gb;cpu,*\"?"
    )


@settings(deadline=None)
@given(st.text(max_size=40))
def test_the_check_and_the_node_agree_on_every_text(text: str) -> None:
    found = check_expert(text)
    try:
        request(virtual_ram_gb=0.0, expert_mode_allocations=text)
    except AllocSyntaxError as error:
        assert found is not None
        assert error.message in found
    except AllocSpecError as error:
        assert found == str(error)
    else:
        assert found is None
