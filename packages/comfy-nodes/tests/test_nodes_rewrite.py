"""Prompts of older workflows, said anew before the host checks them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_testing import DEVICES

from comfy_nodes.nodes._controls import read_controls
from comfy_nodes.nodes._errors import ConflictingInputsError, NodeError
from comfy_nodes.nodes.older._rewrite import rewrite_inputs, rewrite_prompt
from comfy_nodes.nodes.running._request import request_for
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._table import TABLE

STANDARD = TABLE["UNETLoaderDisTorchMultiGPU"]
LEGACY = TABLE["CLIPLoaderGGUFDisTorchMultiGPU"]
DISTORCH2 = TABLE["UNETLoaderDisTorch2MultiGPU"]
PLACED = [node_id for node_id, row in TABLE.items() if row.layout is not None and row.layout.places]

older_inputs = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(DEVICES),
        "virtual_vram_gb": st.floats(0, 24),
        "use_other_vram": st.booleans(),
        "allocations": st.sampled_from(["cuda:0,0.15;cpu,0.5", "cuda:1,25%;cpu,75%"]),
        "eject_models": st.booleans(),
        "high_precision_loras": st.booleans(),
    },
)


@settings(deadline=None)
@given(st.sampled_from(PLACED), older_inputs)
def test_what_is_said_anew_asks_for_the_same(node_id: str, inputs: dict[str, Any]) -> None:
    row = TABLE[node_id]
    said = rewrite_inputs(row, inputs, DEVICES)
    if not isinstance(_outcome(row, inputs), str):
        assert set(said) <= {*row.input_names, "eject_models"}
    assert _outcome(row, said) == _outcome(row, inputs)


@settings(deadline=None)
@given(st.sampled_from(PLACED), older_inputs)
def test_saying_it_anew_twice_changes_nothing(node_id: str, inputs: dict[str, Any]) -> None:
    row = TABLE[node_id]
    once = rewrite_inputs(row, inputs, DEVICES)
    assert rewrite_inputs(row, once, DEVICES) == once


def _outcome(row: NodeRow, inputs: dict[str, Any]) -> object:
    """What a node asks for, or what it complains about."""
    try:
        request = request_for(row, inputs, DEVICES)
    except (NodeError, ValueError) as error:
        return str(error)
    return request.compute_device, str(request.allocation), request.eject_models


def test_todays_inputs_are_left_as_they_are() -> None:
    inputs = {
        "unet_name": "a",
        "weight_dtype": "default",
        "compute_device": "cuda:0",
        "virtual_ram_gb": 4.0,
        "donor_device": "cpu",
        "expert_mode_allocations": "",
    }
    assert rewrite_inputs(STANDARD, inputs, DEVICES) == inputs


def test_several_donors_become_a_text_where_the_list_can_say_one() -> None:
    said = rewrite_inputs(STANDARD, {"device": "cuda:0", "virtual_vram_gb": 6.0, "use_other_vram": True}, DEVICES)
    assert said == {
        "compute_device": "cuda:0",
        "virtual_ram_gb": 6.0,
        "expert_mode_allocations": "#cuda:0;6;cuda:1,cpu",
    }


def test_a_donor_becomes_a_text_where_there_is_only_a_switch() -> None:
    said = rewrite_inputs(LEGACY, {"device": "cuda:0", "donor_device": "cuda:1"}, DEVICES)
    assert said == {"device": "cuda:0", "expert_mode_allocations": "#cuda:0;4;cuda:1"}


@pytest.mark.parametrize(("donor", "switch"), [("cpu", False), ("cuda:1,cpu", True)])
def test_donors_become_the_switch_where_it_can_say_them(donor: str, switch: bool) -> None:
    said = rewrite_inputs(LEGACY, {"device": "cuda:0", "donor_device": donor}, DEVICES)
    assert said == {"device": "cuda:0", "use_other_vram": switch}


def test_donors_that_take_nothing_need_no_text() -> None:
    inputs = {"device": "cuda:0", "virtual_vram_gb": 0.0, "use_other_vram": True}
    assert rewrite_inputs(STANDARD, inputs, DEVICES) == {"compute_device": "cuda:0", "virtual_ram_gb": 0.0}


def test_a_text_keeps_its_word_over_donors() -> None:
    inputs = {"device": "cuda:0", "use_other_vram": True, "expert_mode_allocations": "cuda:0,2gb;cpu,*"}
    assert rewrite_inputs(STANDARD, inputs, DEVICES)["expert_mode_allocations"] == "cuda:0,2gb;cpu,*"


def test_links_move_to_todays_names_and_stay_links() -> None:
    inputs = {"device": ["7", 0], "virtual_vram_gb": ["8", 1], "use_other_vram": False}
    said = rewrite_inputs(STANDARD, inputs, DEVICES)
    assert said == {"compute_device": ["7", 0], "virtual_ram_gb": ["8", 1], "donor_device": "cpu"}


def test_a_contradiction_is_left_for_the_node_to_name() -> None:
    inputs = {"device": "cuda:1", "compute_device": "cuda:0"}
    assert rewrite_inputs(STANDARD, inputs, DEVICES) == inputs
    with pytest.raises(ConflictingInputsError):
        read_controls(inputs, DEVICES)


def test_a_number_as_text_is_left_for_the_host() -> None:
    assert rewrite_inputs(STANDARD, {"virtual_ram_gb": "4.5"}, DEVICES) == {"virtual_ram_gb": "4.5"}


def test_an_allocation_in_the_place_of_the_number_does_not_replace_one_in_its_own() -> None:
    inputs = {"virtual_ram_gb": "cuda:0,0.15;cpu,0.5", "expert_mode_allocations": "cpu,*"}
    assert rewrite_inputs(STANDARD, inputs, DEVICES) == inputs


def test_only_our_placement_nodes_are_touched() -> None:
    foreign = {"class_type": "KSampler", "inputs": {"device": "cuda:0", "donor_device": True}}
    plain = {"class_type": "UNETLoaderMultiGPU", "inputs": {"device": "cuda:0", "virtual_vram_gb": 4.0}}
    broken: dict[str, Any] = {"inputs": {}}
    older = {"class_type": DISTORCH2.node_id, "inputs": {"virtual_ram_gb": 2.0}, "_meta": {"title": "x"}}
    prompt = {"1": foreign, "2": plain, "3": broken, "4": "no node", "5": older}
    said = rewrite_prompt(prompt, TABLE, DEVICES)
    assert {number: said[number] for number in "1234"} == {number: prompt[number] for number in "1234"}
    assert said["5"] == {**older, "inputs": {"virtual_vram_gb": 2.0}}


def test_the_prompt_that_came_is_not_changed() -> None:
    inputs = {"device": "cuda:0", "virtual_vram_gb": 4.0}
    rewrite_prompt({"1": {"class_type": STANDARD.node_id, "inputs": inputs}}, TABLE, DEVICES)
    assert inputs == {"device": "cuda:0", "virtual_vram_gb": 4.0}
