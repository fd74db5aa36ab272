"""Saved workflows of every generation, in today's names and positions before the editor opens them."""

import asyncio
import json
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_golden import WORKFLOWS
from nodes_testing import DEVICES, sent_by_editor

from alloc_spec import AllocSpecError
from comfy_nodes.host.app import interface
from comfy_nodes.nodes._errors import NodeError
from comfy_nodes.nodes.older._opened import reopen, reopen_node
from comfy_nodes.nodes.older._rewrite import declared_name, rewrite_inputs, rewrite_prompt
from comfy_nodes.nodes.running._request import check_expert, request_for
from comfy_nodes.nodes.table._table import TABLE

UI = sorted(WORKFLOWS.glob("*-ui.json"))
API = sorted(WORKFLOWS.glob("*-api.json"))
PLACED = [node_id for node_id, row in TABLE.items() if row.layout is not None and row.layout.places]
GGUF = "UnetLoaderGGUFDisTorchMultiGPU"


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def slot(name: str, kind: str = "COMBO", link: int | None = None) -> dict[str, Any]:
    """A socket of a widget, as editors of 2025 and later save it."""
    return {"name": name, "type": kind, "link": link, "widget": {"name": name}}


def named(node_id: str, **values: Any) -> dict[str, Any]:
    """A node as an editor saves it that notes the names of the widgets."""
    return {
        "type": node_id,
        "inputs": [slot(name) for name in values],
        "widgets_values": list(values.values()),
        "mode": 0,
    }


def values_of(node: dict[str, Any]) -> dict[str, Any]:
    row = TABLE[node["type"]]
    names = [widget.name for widget in row.widgets if widget.kind != "LINK"]
    return dict(zip(names, node["widgets_values"], strict=True))


@pytest.mark.parametrize("path", UI, ids=[path.stem for path in UI])
def test_what_is_opened_asks_for_what_was_saved(path: Path) -> None:
    saved = load(path)
    opened = {**saved, "nodes": reopen(saved, TABLE, DEVICES)["nodes"]}
    asked = [rewrite_prompt(sent_by_editor(each), TABLE, DEVICES) for each in (saved, opened)]
    for before, after in zip(asked[0].values(), asked[1].values(), strict=True):
        # A donor beside a text says nothing: the text decides.
        told = {
            name: value for name, value in before["inputs"].items() if name not in ("donor_device", "virtual_ram_gb")
        }
        assert {name: after["inputs"][name] for name in told} == told


@pytest.mark.parametrize("path", UI, ids=[path.stem for path in UI])
def test_every_value_is_of_its_widgets_kind(path: Path) -> None:
    kinds: dict[str, Any] = {"COMBO": str, "STRING": str, "FLOAT": (int, float), "BOOLEAN": bool}
    for node in reopen(load(path), TABLE, DEVICES)["nodes"]:
        for widget, value in zip(TABLE[node["type"]].widgets, node["widgets_values"], strict=False):
            assert isinstance(value, kinds[widget.kind]), (node["type"], widget.name, value)
            assert widget.kind == "BOOLEAN" or not isinstance(value, bool)


@pytest.mark.parametrize("path", UI, ids=[path.stem for path in UI])
def test_opening_changes_nothing_that_was_given_and_nothing_twice(path: Path) -> None:
    saved = load(path)
    untouched = deepcopy(saved)
    once = reopen(saved, TABLE, DEVICES)
    assert saved == untouched
    assert reopen(once, TABLE, DEVICES) == once


def test_names_that_the_editor_noted_decide() -> None:
    # By position this switch would be today's eject_models, of which it is the opposite.
    saved = named(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="a.safetensors",
        weight_dtype="default",
        compute_device="cuda:0",
        virtual_vram_gb=12.5,
        donor_device="cpu",
        expert_mode_allocations="",
        keep_loaded=True,
    )
    opened = reopen_node(saved, TABLE, DEVICES)
    assert values_of(opened)["eject_models"] is False
    assert [each["name"] for each in opened["inputs"]] == list(values_of(opened))
    assert all(each["widget"]["name"] == each["name"] for each in opened["inputs"])


def test_a_name_that_means_nothing_leaves_no_socket_behind() -> None:
    saved = named(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="a.safetensors",
        weight_dtype="default",
        compute_device="cuda:0",
        virtual_vram_gb=9.0,
        donor_device="cuda:1",
        expert_mode_allocations="",
        high_precision_loras=False,
    )
    opened = reopen_node(saved, TABLE, DEVICES)
    assert values_of(opened)["eject_models"] is True
    assert "high_precision_loras" not in [each["name"] for each in opened["inputs"]]


def test_a_socket_that_is_used_keeps_its_link_under_todays_name() -> None:
    saved = named(GGUF, unet_name="a.gguf", device="cuda:1", virtual_vram_gb=6.0, use_other_vram=False)
    saved["inputs"][1]["link"] = 7
    opened = reopen_node(saved, TABLE, DEVICES)
    assert opened["inputs"][1] == slot("compute_device", link=7)
    assert values_of(opened) == {
        "unet_name": "a.gguf",
        "compute_device": "cuda:1",
        "virtual_ram_gb": 6.0,
        "donor_device": "cpu",
        "expert_mode_allocations": "",
    }


def test_every_other_accelerator_is_said_in_words() -> None:
    opened = reopen_node(
        named(GGUF, unet_name="a", device="cuda:1", virtual_vram_gb=6.0, use_other_vram=True), TABLE, DEVICES
    )
    assert values_of(opened)["expert_mode_allocations"] == "#cuda:1;6;cuda:0,cpu"


def test_todays_name_decides_where_two_names_contradict_each_other() -> None:
    saved = named(GGUF, unet_name="a.gguf", device="cuda:1", compute_device="cuda:0")
    assert values_of(reopen_node(saved, TABLE, DEVICES))["compute_device"] == "cuda:0"


@pytest.mark.parametrize(
    "node",
    [
        {"type": "KSampler", "widgets_values": [1, "fixed", 20]},
        {"type": "UNETLoaderMultiGPU", "widgets_values": ["a", "default", "cuda:0"]},
        {"type": GGUF, "widgets_values": {"device": "cuda:0"}},
        {"type": GGUF},
        {"type": None, "widgets_values": []},
        {"widgets_values": []},
        "no node",
        None,
    ],
)
def test_what_is_not_ours_to_change_is_given_back(node: object) -> None:
    assert reopen_node(node, TABLE, DEVICES) is node


def test_both_forms_are_answered_and_nothing_else() -> None:
    prompt = {"1": {"class_type": GGUF, "inputs": {"unet_name": "a.gguf", "device": "cuda:1"}}}
    answered = reopen({"prompt": prompt, "nodes": [None], "other": 1}, TABLE, DEVICES)
    assert set(answered) == {"prompt", "nodes"}
    assert answered["nodes"] == [None]
    assert answered["prompt"]["1"]["inputs"] == {
        "unet_name": "a.gguf",
        "compute_device": "cuda:1",
        "virtual_ram_gb": 4.0,
        "donor_device": "cpu",
        "expert_mode_allocations": "",
    }
    assert reopen({"prompt": 3, "nodes": "many"}, TABLE, DEVICES) == {}


@pytest.mark.parametrize("path", API, ids=[path.stem for path in API])
def test_a_prompt_says_the_value_of_every_widget_and_asks_for_the_same(path: Path) -> None:
    prompt = load(path)
    plain = rewrite_prompt(prompt, TABLE, DEVICES)
    for number, node in reopen({"prompt": prompt}, TABLE, DEVICES)["prompt"].items():
        row = TABLE[node["class_type"]]
        assert set(node["inputs"]) == set(row.input_names)
        added = {name: value for name, value in node["inputs"].items() if name not in plain[number]["inputs"]}
        assert added == {name: row.default_of(name) for name in added}


@pytest.mark.parametrize(
    "node", [None, {"class_type": GGUF}, {"class_type": "KSampler", "inputs": {}}, {"inputs": {}}, ["a"]]
)
def test_a_prompt_with_anything_in_it_is_answered(node: object) -> None:
    assert reopen({"prompt": {"1": node}}, TABLE, DEVICES) == {"prompt": {"1": node}}


def test_values_that_were_not_saved_are_the_defaults() -> None:
    saved = {"type": "UNETLoaderDisTorch2MultiGPU", "widgets_values": ["a.safetensors", "default"]}
    assert values_of(reopen_node(saved, TABLE, DEVICES)) == {
        "unet_name": "a.safetensors",
        "weight_dtype": "default",
        "compute_device": "cuda:0",
        "virtual_vram_gb": 4.0,
        "donor_device": "cpu",
        "expert_mode_allocations": "",
        "eject_models": True,
    }


def test_todays_name_of_an_input() -> None:
    row = TABLE[GGUF]
    assert declared_name(row, "device") == "compute_device"
    assert declared_name(row, "virtual_vram_gb") == "virtual_ram_gb"
    assert declared_name(row, "keep_loaded") is None
    assert declared_name(row, "unet_name") is None


@pytest.mark.parametrize(
    ("body", "status", "answer"),
    [
        ('{"nodes": [1]}', 200, {"said": {"nodes": [1]}}),
        ("[1]", 400, {"error": "post a JSON object"}),
        ("{", 400, {"error": "post a JSON object"}),
        ("", 400, {"error": "post a JSON object"}),
        ('{"nodes": ' + "[" * 100_000 + "]" * 100_000 + "}", 400, {"error": "post a JSON object"}),
        ('{"fails": 1}', 400, {"error": "post a JSON object"}),
        (b"\xff\xfe{}", 400, {"error": "post a JSON object"}),
        (("text/plain; charset=klingon", "{}"), 400, {"error": "post a JSON object"}),
    ],
)
def test_the_route_answers_objects_alone(
    monkeypatch: pytest.MonkeyPatch, body: Any, status: int, answer: dict[str, Any]
) -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    routes = web.RouteTableDef()
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(routes=routes)))
    monkeypatch.setitem(sys.modules, "server", cast(ModuleType, server))
    kind, data = body if isinstance(body, tuple) else ("application/json", body)

    def respond(document: dict[str, Any]) -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        return {"said": {name: document[name] for name in ("nodes",)}}

    assert interface.answer("/reopen", respond)

    async def ask() -> tuple[int, Any]:
        application = web.Application()
        application.add_routes(routes)
        async with TestClient(TestServer(application)) as client:
            response = await client.post("/reopen", data=data, headers={"Content-Type": kind})
            return response.status, await response.json()

    assert asyncio.run(ask()) == (status, answer)


@pytest.mark.parametrize(
    "inputs",
    [
        {"virtual_vram_gb": 4.0, "use_other_vram": None, "donor_device": ",".join(f"npu:{i}" for i in range(900_000))},
        {"virtual_vram_gb": "cuda:0,1gb;" * 700_000},
        {"virtual_vram_gb": 10**400, "use_other_vram": True},
        {"virtual_vram_gb": float("nan"), "use_other_vram": True},
        {"device": "x" * 8_000_000, "use_other_vram": True},
    ],
)
def test_huge_inputs_of_an_older_layout_take_no_time(inputs: dict[str, Any]) -> None:
    started = time.process_time()
    rewrite_inputs(TABLE[GGUF], {"device": "cuda:0", **inputs}, DEVICES)
    check_expert(str(inputs.get("virtual_vram_gb")))
    assert time.process_time() - started < 0.5
    with pytest.raises((NodeError, AllocSpecError)) as error:
        request_for(TABLE[GGUF], rewrite_inputs(TABLE[GGUF], {"device": "cuda:0", **inputs}, DEVICES), DEVICES)
    assert len(str(error.value)) < 400


def test_without_a_server_there_is_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server", raising=False)
    assert not interface.answer("/reopen", lambda document: document)


saved_values = st.lists(
    st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=8), st.just("cuda:0,1gb;cpu,*"))
)
saved_slots = st.lists(
    st.one_of(
        st.builds(slot, st.sampled_from(["device", "keep_loaded", "use_other_vram", "unet_name", "donor_device", "x"])),
        st.dictionaries(st.text(max_size=3), st.integers()),
        st.integers(),
    )
)


@settings(deadline=None)
@given(st.sampled_from(PLACED), saved_values, saved_slots)
def test_whatever_was_saved_is_opened(node_id: str, values: list[Any], slots: list[Any]) -> None:
    saved = {"type": node_id, "widgets_values": values, "inputs": slots}
    opened = reopen_node(saved, TABLE, DEVICES)
    if opened is not saved:
        assert len(opened["widgets_values"]) == len([w for w in TABLE[node_id].widgets if w.kind != "LINK"])
