"""The table: what is published never disappears, positions never move, every input explains itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.nodes._controls import FIELD_OF
from comfy_nodes.nodes.table._layouts import LAYOUTS, LEGACY, LEGACY_ENCODER, STANDARD
from comfy_nodes.nodes.table._loaders import LOADERS, Loader
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE
from comfy_nodes.nodes.table._widgets import Devices, Files, OfHostNode

DATA = Path(__file__).parent / "data"
PUBLISHED: dict[str, dict[str, Any]] = json.loads((DATA / "published_nodes.json").read_text())["nodes"]
FROZEN: dict[str, list[str]] = json.loads((DATA / "frozen_nodes.json").read_text())

# Released with the legacy inputs, and shown with the standardized ones since: same positions, other names.
STANDARDIZED = {"UnetLoaderGGUFDisTorchMultiGPU", "UnetLoaderGGUFAdvancedDisTorchMultiGPU"}
SEED_BASES = [
    "UNETLoader",
    "VAELoader",
    "CLIPLoader",
    "DualCLIPLoader",
    "TripleCLIPLoader",
    "QuadrupleCLIPLoader",
    "CLIPVisionLoader",
    "CheckpointLoaderSimple",
    "ControlNetLoader",
    "DiffusersLoader",
    "DiffControlNetLoader",
    "UnetLoaderGGUF",
    "UnetLoaderGGUFAdvanced",
]
ROWS = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)


def test_every_published_id_is_there() -> None:
    assert len(PUBLISHED) == 75
    assert set(PUBLISHED) <= set(TABLE) | {node.node_id for node in SIBLINGS}


@pytest.mark.parametrize("base", SEED_BASES)
def test_every_loader_has_the_four_standardized_inputs(base: str) -> None:
    row = TABLE[f"{base}DisTorchMultiGPU"]
    assert row.input_names[-4:] == ("compute_device", "virtual_ram_gb", "donor_device", "expert_mode_allocations")
    assert row.category == "multigpu/distorch"
    assert not row.deprecated
    gigabytes = STANDARD.widgets[1]
    assert (gigabytes.default, gigabytes.minimum, gigabytes.maximum, gigabytes.step) == (4.0, 0.0, 128.0, 0.1)
    assert row.default_of("donor_device") == "cpu"


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_only_loaders_of_gguf_files_offer_them(loader: Loader) -> None:
    offers = [widget.choices for widget in loader.widgets if isinstance(widget.choices, (Files, OfHostNode))]
    assert offers
    for choices in offers:
        # What a node of the host offers is what the host itself can load; files of a folder are those of both kinds.
        assert isinstance(choices, OfHostNode) or loader.gguf, loader.name


def test_nothing_disappears_and_no_input_moves() -> None:
    # A new node, or a new input behind the others, is added to frozen_nodes.json; nothing in it may change or go.
    for node_id, names in FROZEN.items():
        assert TABLE[node_id].input_names[: len(names)] == tuple(names), node_id
    assert list(TABLE) == list(FROZEN), "write the new node into tests/data/frozen_nodes.json"
    assert all(list(TABLE[node_id].input_names) == names for node_id, names in FROZEN.items())


@pytest.mark.parametrize("node_id", [node_id for node_id in PUBLISHED if node_id in TABLE])
def test_published_inputs_keep_place_kind_and_default(node_id: str) -> None:
    published = PUBLISHED[node_id]
    row = TABLE[node_id]
    assert len(row.widgets) == len(published["inputs"])
    for widget, was in zip(row.widgets, published["inputs"], strict=True):
        options = was.get("options", {})
        if node_id in STANDARDIZED and was["name"] in FIELD_OF:
            assert FIELD_OF[widget.name] == FIELD_OF[was["name"]]
            continue
        assert (widget.name, widget.type_name) == (was["name"], was["type"])
        assert widget.optional == (was["where"] == "optional")
        if not isinstance(widget.choices, (Devices, OfHostNode)):
            assert widget.default == options.get("default", widget.default)
            assert (widget.minimum, widget.maximum, widget.step) == tuple(
                options.get(name) for name in ("min", "max", "step")
            )


@pytest.mark.parametrize("node_id", [node_id for node_id in PUBLISHED if node_id in TABLE])
def test_published_outputs_keep_their_slots(node_id: str) -> None:
    returns = PUBLISHED[node_id]["returns"]
    assert [output.io_type for output in TABLE[node_id].outputs][: len(returns)] == returns


@ROWS
def test_every_input_and_output_explains_itself(row: NodeRow) -> None:
    tooltips = [*(widget.tooltip for widget in row.widgets), *(output.tooltip for output in row.outputs)]
    for tooltip in tooltips:
        assert len(tooltip) > 10
        assert tooltip.endswith("."), tooltip
    assert row.summary.endswith(".")
    assert row.display_name != row.node_id


@ROWS
def test_names_are_unique_and_optional_inputs_come_last(row: NodeRow) -> None:
    assert len(set(row.input_names)) == len(row.input_names)
    optional = [widget.optional for widget in row.widgets]
    assert optional == sorted(optional), "the host lists optional inputs last, which would move the others"


def test_display_names_are_told_apart() -> None:
    names = [row.display_name for row in TABLE.values()]
    assert len(set(names)) == len(names)


@ROWS
def test_a_combo_has_choices_and_a_number_has_limits(row: NodeRow) -> None:
    for widget in row.widgets:
        assert (widget.choices is not None) == (widget.kind == "COMBO"), widget.name
        if widget.kind in ("FLOAT", "INT"):
            assert widget.minimum is not None
            assert widget.maximum is not None
            assert isinstance(widget.default, float)
            assert widget.minimum <= widget.default <= widget.maximum
        assert bool(widget.io_type) == (widget.kind == "LINK"), widget.name


def test_layouts_since_1_6_say_the_same_at_the_same_place() -> None:
    for layout in LAYOUTS:
        if layout.places:
            fields = [FIELD_OF[widget.name] for widget in layout.widgets]
            assert fields == ["compute_device", "virtual_ram_gb", "donors", "expert", "eject_models"][: len(fields)]


def test_only_the_legacy_layouts_are_superseded() -> None:
    superseded = {row.node_id for row in TABLE.values() if row.deprecated}
    legacy = {row.node_id for row in TABLE.values() if row.layout in (LEGACY, LEGACY_ENCODER)}
    assert superseded == legacy | {"UNetLoaderLP"}
    assert len(legacy) == 6


def test_encoders_of_distorch2_call_their_device_device() -> None:
    for row in TABLE.values():
        if row.layout is not None and row.layout.name.startswith("DisTorch2"):
            assert row.loader is not None
            expected = ("device", False) if row.loader.is_encoder else ("compute_device", True)
            added = row.input_names[len(row.loader.widgets)]
            assert (added, row.default_of("eject_models")) == expected


def test_a_variant_has_its_loader_own_inputs_first() -> None:
    for row in TABLE.values():
        if row.loader is not None and row.layout is not None:
            assert row.widgets == (*row.loader.widgets, *row.layout.widgets)
            assert row.node_id == row.loader.name + row.layout.suffix


def test_every_loader_is_offered_plain_and_placed() -> None:
    for name in LOADERS:
        assert f"{name}MultiGPU" in TABLE
        assert f"{name}DisTorch2MultiGPU" in TABLE
        assert f"{name}DisTorchMultiGPU" in TABLE
