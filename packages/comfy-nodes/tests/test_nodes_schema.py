"""How nodes are described to hosts that know more or less: those of other releases than the one at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_testing import DEVICES

from alloc_spec import parse
from comfy_nodes import host as adapter
from comfy_nodes.host import Loaded, PlacementRequest
from comfy_nodes.host.app import folders, interface
from comfy_nodes.nodes.running import _load
from comfy_nodes.nodes.running._classes import node_class
from comfy_nodes.nodes.running._request import request_for
from comfy_nodes.nodes.running._schema import input_of, output_of, schema, schema_of
from comfy_nodes.nodes.running._tools import ALWAYS_NEW
from comfy_nodes.nodes.table._layouts import DISTORCH2, DISTORCH2_ENCODER, LEGACY, LEGACY_ENCODER, PLAIN, STANDARD
from comfy_nodes.nodes.table._loaders import LOADERS
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._table import TABLE
from comfy_nodes.nodes.table._variants import variant
from comfy_nodes.nodes.table._widgets import Devices, Fixed, Output, Widget, combo, link

OLD = ("node_id", "display_name", "category", "description", "inputs", "outputs", "is_output_node")
NEW = (*OLD, "is_deprecated", "accept_all_inputs", "is_api_node")


@dataclass(frozen=True)
class Described:
    """An input or output as the host was told about it."""

    kind: str
    name: str
    said: Mapping[str, Any] = field(default_factory=dict)


def kind_of(kind: str) -> Any:
    return SimpleNamespace(
        Input=lambda name, **said: Described(kind, name, said),
        Output=lambda display_name, **said: Described(kind, display_name, said),
    )


def api(known: tuple[str, ...]) -> Any:
    """A host's node API whose descriptions know these fields."""
    schema_class = make_dataclass("Schema", [(name, Any, None) for name in known])
    typed = {name: kind_of(name.upper()) for name in ("Float", "Int", "Boolean", "String", "Combo")}
    node = type("ComfyNode", (), {})
    output = lambda *values, ui: SimpleNamespace(args=values, ui=ui)  # noqa: E731 - a stand-in for a class
    io = SimpleNamespace(Schema=schema_class, Custom=kind_of, ComfyNode=node, NodeOutput=output, **typed)
    return SimpleNamespace(io=io)


@pytest.fixture(autouse=True)
def edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(adapter), "device_names", lambda: DEVICES)
    monkeypatch.setattr(interface, "comfy_api", lambda: api(NEW))
    monkeypatch.setattr(interface, "registered_nodes", dict)
    monkeypatch.setattr(folders, "file_names", lambda folder: [f"{folder}.safetensors", f"{folder}.gguf"])


def test_a_host_is_told_what_it_knows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    row = TABLE["UnetLoaderGGUFDisTorchLegacyMultiGPU"]
    told = schema_of(row)
    assert (told.is_deprecated, told.accept_all_inputs) == (True, True)
    monkeypatch.setattr(interface, "comfy_api", lambda: api(OLD))
    older = schema_of(row)
    assert {name: getattr(older, name) for name in OLD} == {name: getattr(told, name) for name in OLD}
    assert not hasattr(older, "is_deprecated")


def test_what_is_not_said_stays_the_hosts_own() -> None:
    assert schema(node_id="a").is_api_node is None
    assert schema(node_id="a", unheard_of=3).node_id == "a"


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_every_row_is_described_whole(row: NodeRow) -> None:
    told = schema_of(row)
    assert [each.name for each in told.inputs] == list(row.input_names)
    assert [each.kind for each in told.inputs] == [widget.type_name for widget in row.widgets]
    assert [(each.kind, each.name) for each in told.outputs] == [(each.io_type, each.name) for each in row.outputs]
    assert (told.display_name, told.category, told.description) == (row.display_name, row.category, row.summary)
    # Inputs of older workflows reach a node only where the host is asked to let unknown names through.
    assert told.accept_all_inputs == (row.layout is not None)
    assert told.is_output_node == row.is_output


@pytest.mark.parametrize(
    ("widget", "said"),
    [
        (
            Widget(name="x", kind="FLOAT", tooltip="t", default=4.0, minimum=0.0, maximum=9.0, step=0.5),
            {"default": 4.0, "min": 0.0, "max": 9.0, "step": 0.5},
        ),
        (Widget(name="x", kind="INT", tooltip="t", default=3), {"default": 3, "min": None, "max": None, "step": None}),
        (Widget(name="x", kind="BOOLEAN", tooltip="t", default=True), {"default": True}),
        (Widget(name="x", kind="STRING", tooltip="t", default=""), {"default": "", "multiline": False}),
        (
            Widget(name="x", kind="STRING", tooltip="t", default="a", multiline=True),
            {"default": "a", "multiline": True},
        ),
        (combo("x", Devices(), "t"), {"default": "cuda:0", "options": list(DEVICES)}),
        (combo("x", Devices(), "t", default="cpu"), {"default": "cpu", "options": list(DEVICES)}),
        (combo("x", Fixed(options=("a", "b")), "t"), {"default": None, "options": ["a", "b"]}),
        (link("x", "MODEL", "t"), {}),
    ],
    ids=lambda value: value.kind if isinstance(value, Widget) else "",
)
@pytest.mark.parametrize("optional", [False, True])
def test_an_input_says_what_its_kind_can(widget: Widget, said: dict[str, Any], optional: bool) -> None:
    asked = Widget(**{name: getattr(widget, name) for name in Widget.__slots__} | {"optional": optional})
    told = input_of(asked)
    assert (told.kind, told.name) == (asked.type_name, "x")
    assert told.said == {"optional": optional, "tooltip": "t", **said}


def test_an_output_is_of_the_hosts_type() -> None:
    assert output_of(Output(io_type="CLIP", name="encoder", tooltip="t")) == Described(
        "CLIP", "encoder", {"tooltip": "t"}
    )


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_a_class_is_derived_from_the_node_api_alone(row: NodeRow) -> None:
    made: Any = node_class(row)
    assert [base.__name__ for base in made.__mro__] == [row.node_id, "ComfyNode", "object"]
    assert made.__doc__ == row.summary
    assert made.define_schema().node_id == row.node_id
    texts = [name for name in row.input_names if name.endswith("expert_mode_allocations")]
    assert hasattr(made, "validate_inputs") == bool(texts)
    assert hasattr(made, "fingerprint_inputs") == (row.node_id in ALWAYS_NEW)
    for name in texts:
        assert made.validate_inputs(**{name: "auto"}) is True
        assert "did you mean" in made.validate_inputs(**{name: "cuda:0=2gb"})


def test_a_loaders_own_inputs_and_the_added_ones_go_their_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    steps: list[int] = []

    def run(loader: Any, values: Any, request: PlacementRequest) -> Loaded[Any]:
        asked.append((loader.name, dict(values), request))
        return Loaded(value="model")

    monkeypatch.setattr(_load, "run", run)
    monkeypatch.setattr(interface, "progress_bar", lambda total: SimpleNamespace(update=steps.append))
    made: Any = node_class(TABLE["UNETLoaderDisTorch2MultiGPU"])
    given = {"unet_name": "a", "weight_dtype": "default", "device": "cuda:1", "virtual_vram_gb": 3.0, "extra": 1}
    assert made.execute(**given).args == ("model",)
    request = PlacementRequest(compute_device="cuda:1", allocation=parse("#cuda:1;3;cpu"), eject_models=True)
    assert asked == [("UNETLoader", {"unet_name": "a", "weight_dtype": "default"}, request)]
    assert steps == [1]


def test_nothing_is_loaded_for_inputs_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "run", lambda *given: pytest.fail("it was loaded"))
    made: Any = node_class(TABLE["UNETLoaderDisTorchMultiGPU"])
    with pytest.raises(ValueError, match="expected ';' or the end"):
        made.execute(unet_name="a", expert_mode_allocations="cuda:0,2gb,cpu,*")


saved = st.tuples(
    st.sampled_from(["cuda:0", "cuda:1"]),
    st.floats(0, 24),
    st.booleans(),
    st.sampled_from(["", "auto", "cuda:0,25%;cpu,*", "#cuda:1;2;cpu"]),
    st.booleans(),
)


@pytest.mark.parametrize(
    ("before", "today"),
    [
        (LEGACY, STANDARD),
        (LEGACY, DISTORCH2),
        (LEGACY_ENCODER, DISTORCH2_ENCODER),
        (DISTORCH2, STANDARD),
        (DISTORCH2_ENCODER, STANDARD),
        (STANDARD, DISTORCH2),
    ],
    ids=lambda layout: layout.name,
)
@settings(deadline=None, max_examples=50)
@given(values=saved)
def test_values_saved_with_one_generation_mean_the_same_by_position_in_another(
    before: Any, today: Any, values: tuple[Any, ...]
) -> None:
    """All generations since 1.6 have the same positions; of the donor only the switch changed to a list."""
    loader = LOADERS["UnetLoaderGGUF"]
    device, gigabytes, switch, text, eject = values
    listed = [device, gigabytes, switch if before in (LEGACY, LEGACY_ENCODER) else "cpu", text, eject]
    asked = []
    for layout in (before, today):
        names = [widget.name for widget in layout.widgets[:4]]
        # What only one of them has is said alike, whatever its default is.
        inputs = dict(zip(names, listed, strict=False)) | {"eject_models": eject}
        asked.append(request_for(variant(loader, layout), inputs, DEVICES))
    assert asked[0] == asked[1]


def test_a_plain_choice_of_device_stands_where_every_generation_has_it() -> None:
    for layout in (PLAIN, STANDARD, DISTORCH2, DISTORCH2_ENCODER, LEGACY, LEGACY_ENCODER):
        assert layout.widgets[0].name in ("device", "compute_device")
        assert isinstance(layout.widgets[0].choices, Devices)
