"""What nodes ask of the host and its adapter, with both replaced at their edge: no host is needed."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes_testing import DEVICES

from alloc_spec import parse
from comfy_nodes import host as adapter
from comfy_nodes.host import Checkpoint, Loaded, PlacementReport, PlacementRequest
from comfy_nodes.host.app import folders, interface
from comfy_nodes.nodes import _serving
from comfy_nodes.nodes._errors import InputValueError
from comfy_nodes.nodes.running import _choices, _classes, _output, _tools
from comfy_nodes.nodes.running._checkpoint_parts import part_request
from comfy_nodes.nodes.running._request import request_for
from comfy_nodes.nodes.table._singles import CHECKPOINT_PARTS, CHECKPOINT_PARTS_DISTORCH2, PLAN
from comfy_nodes.nodes.table._table import TABLE
from comfy_nodes.nodes.table._widgets import Devices, Files, Fixed, OfHostNode, combo
from device_placement import Finding

FILES = {
    "diffusion_models": ["flux.safetensors", "flux-Q8_0.gguf", "flux-Q4.GGUF"],
    "text_encoders": ["t5-Q8_0.gguf", "clip.safetensors"],
}


@pytest.fixture(autouse=True)
def edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards, and folders with a few files."""
    monkeypatch.setitem(vars(adapter), "device_names", lambda: DEVICES)
    monkeypatch.setattr(folders, "file_names", FILES.__getitem__)
    monkeypatch.setattr(folders, "full_path", lambda folder, name: f"/{folder}/{name}")
    monkeypatch.setattr(folders, "embedding_directory", lambda: ["/embeddings"])


def registers(monkeypatch: pytest.MonkeyPatch, **nodes: Mapping[str, Any]) -> None:
    """Let the host have nodes that describe their inputs so."""
    table = {name: SimpleNamespace(INPUT_TYPES=lambda said=said: said) for name, said in nodes.items()}
    monkeypatch.setattr(interface, "registered_nodes", lambda: table)


def test_devices_are_offered_behind_what_stands_before_them() -> None:
    assert _choices.options(Devices()) == list(DEVICES)
    assert _choices.options(Devices(before=("all devices",))) == ["all devices", *DEVICES]


@pytest.mark.parametrize(
    ("choices", "offered"),
    [
        (Files(folders=("diffusion_models",)), FILES["diffusion_models"]),
        (Files(folders=("diffusion_models",), suffix=".gguf"), ["flux-Q8_0.gguf", "flux-Q4.GGUF"]),
        (
            Files(folders=("text_encoders", "diffusion_models"), suffix=".gguf", qualified=True),
            ["text_encoders/t5-Q8_0.gguf", "diffusion_models/flux-Q8_0.gguf", "diffusion_models/flux-Q4.GGUF"],
        ),
        (Fixed(options=("default", "target")), ["default", "target"]),
    ],
)
def test_files_are_those_of_the_folders_in_their_order(choices: Files | Fixed, offered: list[str]) -> None:
    assert _choices.options(choices) == offered


@pytest.mark.parametrize(
    ("described", "offered"),
    [
        ({"required": {"type": (["wan", "flux"],)}}, ["wan", "flux"]),
        ({"required": {"type": (["wan"], {"tooltip": "which"})}}, ["wan"]),
        ({"required": {"type": ("COMBO", {"options": ["wan", "sd3"]})}}, ["wan", "sd3"]),
        ({"required": {"type": ("COMBO", {"remote": "elsewhere"})}}, []),
        ({"optional": {"type": (("wan",),)}}, ["wan"]),
        ({"required": {"other": (["wan"],)}}, []),
        ({}, []),
    ],
)
def test_a_host_describes_its_choices_in_several_ways(
    described: Mapping[str, Any], offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registers(monkeypatch, CLIPLoader=described)
    assert _choices.options(OfHostNode(node="CLIPLoader", input="type")) == offered


def test_a_node_that_the_host_does_not_have_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registers(monkeypatch)
    assert _choices.options(OfHostNode(node="QuadrupleCLIPLoader", input="clip_name1")) == []


def test_the_default_device_is_the_first_unless_the_table_names_one() -> None:
    assert _choices.default(combo("device", Devices(), "where")) == "cuda:0"
    assert _choices.default(combo("device", Devices(before=("all devices",)), "where")) == "all devices"
    assert _choices.default(combo("donor", Devices(), "where", default="cpu")) == "cpu"
    assert _choices.default(combo("dtype", Fixed(options=("a", "b")), "which")) is None


def asked_for_parts(**inputs: Any) -> dict[str, PlacementRequest]:
    return {part: part_request(CHECKPOINT_PARTS_DISTORCH2, part, inputs) for part in ("unet", "clip", "vae")}


def test_the_parts_of_a_checkpoint_have_defaults_of_their_own() -> None:
    asked = asked_for_parts()
    assert asked["unet"] == PlacementRequest(
        compute_device="cuda:0", allocation=parse("#cuda:0;4;cpu"), eject_models=True
    )
    assert asked["clip"] == PlacementRequest(compute_device="cuda:0", allocation=parse("#cuda:0;2;cpu"))
    assert asked["vae"] == PlacementRequest(compute_device="cuda:0")


def test_room_is_made_once_for_all_parts_or_not_at_all() -> None:
    assert [request.eject_models for request in asked_for_parts(eject_models=True).values()] == [True, False, False]
    assert not any(request.eject_models for request in asked_for_parts(eject_models=False).values())


def test_a_part_is_not_told_what_is_meant_for_another() -> None:
    asked = asked_for_parts(
        clip_expert_mode_allocations="cuda:1,1gb;cpu,*", vae_device="cpu", high_precision_loras=True
    )
    assert asked["unet"].allocation == parse("#cuda:0;4;cpu")
    assert (asked["clip"].compute_device, asked["clip"].allocation) == ("cuda:0", parse("cuda:1,1gb;cpu,*"))
    assert asked["vae"] == PlacementRequest(compute_device="cpu")


def test_a_checkpoint_with_a_device_for_each_part_places_nothing() -> None:
    inputs = {"unet_device": "cuda:1", "clip_device": "cpu", "vae_device": "cuda:0"}
    for part in ("unet", "clip", "vae"):
        asked = part_request(CHECKPOINT_PARTS, part, inputs)
        assert asked == PlacementRequest(compute_device=inputs[f"{part}_device"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    compute=st.sampled_from(DEVICES[:2]),
    moved=st.floats(0, 128),
    donor=st.sampled_from(["cpu", "cuda:0", "cuda:1"]),
    text=st.sampled_from(["", "auto", "cuda:1,1gb;cpu,*"]),
)
def test_a_part_means_by_its_inputs_what_a_loader_means(compute: str, moved: float, donor: str, text: str) -> None:
    donor = "cpu" if donor == compute else donor
    said = {"compute_device": compute, "virtual_vram_gb": moved, "donor_device": donor, "expert_mode_allocations": text}
    alone = request_for(TABLE["UNETLoaderDisTorch2MultiGPU"], said, DEVICES)
    assert asked_for_parts(**{f"unet_{name}": value for name, value in said.items()})["unet"] == alone


def test_a_value_of_a_part_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputValueError, match="compute_device = 3: give a text"):
        asked_for_parts(unet_compute_device=3)


BAD = "cuda:0,2gb,cpu,*"


def test_the_hosts_check_shows_the_text_with_a_caret() -> None:
    told = _classes._validate(object, BAD)
    assert isinstance(told, str) and f"\n    {BAD}\n              ^\n" in told
    assert _classes._validate(object, "cuda:0,2gb;cpu,*") is True
    assert _classes._validate(object) is True


@pytest.mark.parametrize("value", [None, ["3", 0]])
def test_a_text_that_is_not_known_yet_is_not_checked(value: Any) -> None:
    assert _classes._validate(object, value) is True
    assert _classes._validate_parts(object, value, value) is True


@pytest.mark.parametrize(("unet", "clip"), [(BAD, ""), ("", BAD), (["3", 0], BAD), (BAD, "cuda:0=1gb")])
def test_a_bad_text_of_either_part_is_told(unet: Any, clip: Any) -> None:
    assert _classes._validate_parts(object, unet, clip) == _classes._validate(object, BAD)


def test_both_parts_may_be_left_to_the_controls() -> None:
    assert _classes._validate_parts(object) is True


def test_a_dry_run_plans_the_whole_model_where_nothing_is_moved() -> None:
    asked = _tools.plan_request({"virtual_ram_gb": 0.0, "compute_device": "cuda:1"})
    assert asked == PlacementRequest(compute_device="cuda:1", allocation=parse("cuda:1,*"))


def test_a_dry_run_takes_the_controls_of_a_loader() -> None:
    assert _tools.plan_request({}).allocation == parse("#cuda:0;4;cpu")
    assert _tools.plan_request({"expert_mode_allocations": "auto"}).allocation == "auto"


@pytest.mark.parametrize(("given", "understood"), [(0.0, None), (None, None), (1.5, 1.5), (2, 2.0)])
def test_seconds_that_are_not_known_are_nought(given: Any, understood: float | None) -> None:
    assert _tools.plan_request({"compute_seconds": given}).compute_seconds == understood
    assert PLAN.default_of("compute_seconds") == 0.0


def test_a_dry_run_that_planned_nothing_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def plan_file(path: str, request: PlacementRequest) -> PlacementReport:
        asked.append((path, request.allocation))
        return PlacementReport(subject="a", text="a")

    monkeypatch.setitem(vars(adapter), "plan_file", plan_file)
    monkeypatch.setattr(interface, "progress_bar", lambda total: SimpleNamespace(update=lambda steps: None))
    with pytest.raises(AssertionError, match="a dry run gave no plan"):
        _tools.EXECUTES["TorchspanPlan"](object, {"model_name": "checkpoints/sub/sdxl.safetensors"})
    assert asked == [("/checkpoints/sub/sdxl.safetensors", parse("#cuda:0;4;cpu"))]


@pytest.mark.parametrize("name", ["npu:0", "privateuseone:11"])
def test_the_doctors_columns_end_under_their_titles(name: str) -> None:
    devices = [
        SimpleNamespace(name=name, total_bytes=24 << 30, free_bytes=22 << 30, loaded_bytes=1 << 30, label="A card"),
        SimpleNamespace(name="cpu", total_bytes=512 << 30, free_bytes=1, loaded_bytes=0, label=""),
    ]
    head, *rows = _tools.describe(devices, []).splitlines()  # type: ignore[arg-type]
    ends = [match.end() for match in re.finditer(r"(total|free|models) GiB", head)]
    for row in rows:
        assert all(row[end - 1].isdigit() and row[end : end + 1] in (" ", "") for end in ends), row
    assert rows[0].split() == [name, "24.00", "22.00", "1.00", "A", "card"]


def test_findings_follow_with_their_remedies() -> None:
    findings = [
        Finding(level="note", subject="devices", message="only cpu"),
        Finding(level="problem", subject="driver", message="too old", remedy="update it"),
    ]
    assert _tools.describe([], findings).splitlines()[1:] == [
        "note: devices: only cpu",
        "problem: driver: too old",
        "  -> update it",
    ]


def test_no_earlier_run_stands_for_what_depends_on_the_machine() -> None:
    before = _tools.never_the_same(object, device="cpu")
    time.sleep(0.001)
    assert _tools.never_the_same(object, device="cpu") > before
    assert {"TorchspanPlan", "TorchspanDoctor", "TorchspanRelease"} == _tools.ALWAYS_NEW


@pytest.mark.parametrize(
    ("inputs", "asked", "text"),
    [
        ({}, None, "1.5 GiB of models left all devices"),
        ({"device": "all devices"}, None, "1.5 GiB of models left all devices"),
        ({"device": "cuda:1", "anything": "the latent"}, "cuda:1", "1.5 GiB of models left cuda:1"),
    ],
)
def test_memory_is_released_where_it_is_asked_for_and_the_input_goes_on(
    inputs: dict[str, Any], asked: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def release(device: str | None) -> int:
        assert device == asked
        return 3 << 29

    monkeypatch.setitem(vars(adapter), "release", release)
    monkeypatch.setattr(_tools, "node_output", lambda *values, **shown: (values, shown))
    values, shown = _tools.EXECUTES["TorchspanRelease"](object, inputs)
    assert values == (inputs.get("anything"), text)
    assert shown == {"text": text}


class Api:
    """The part of the host's node API that outputs are made with."""

    class io:
        @staticmethod
        def NodeOutput(*values: Any, ui: Any) -> Any:
            return SimpleNamespace(args=values, ui=ui)


def test_a_report_is_an_output_only_where_the_row_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "comfy_api", lambda: Api)
    loaded = Loaded(value="model", reports=(PlacementReport(subject="a", text="tables"),))
    standard = _output.loaded_output(TABLE["UNETLoaderDisTorchMultiGPU"], loaded)
    assert (standard.args, standard.ui) == (("model", "tables"), {"text": ("tables",)})
    distorch2 = _output.loaded_output(TABLE["UNETLoaderDisTorch2MultiGPU"], loaded)
    assert (distorch2.args, distorch2.ui) == (("model",), {"text": ("tables",)})
    parts: Loaded[Any] = Loaded(value=Checkpoint(model="m", clip="c", vae="v"))
    checkpoint = _output.loaded_output(TABLE["CheckpointLoaderSimpleDisTorchMultiGPU"], parts)
    assert (checkpoint.args, checkpoint.ui) == (("m", "c", "v", ""), None)


def test_what_is_shown_besides_the_text_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "comfy_api", lambda: Api)
    assert _output.node_output(1, text="words", shown={"images": ["a"]}).ui == {"images": ["a"], "text": ("words",)}
    assert _output.node_output(1).ui is None


@pytest.mark.parametrize(
    ("missing", "said"),
    [({"gguf"}, "gguf is not installed"), ({"gguf", "gguf_loader"}, "gguf and gguf_loader are not installed")],
)
def test_without_a_library_its_nodes_alone_are_left_out(
    missing: set[str], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "find_spec", lambda name: None if name in missing else object())
    left_out = _serving._without_dependency()
    assert {row.node_id for row in left_out} == {name for name, row in TABLE.items() if row.loader and row.loader.gguf}
    (record,) = caplog.records
    assert record.getMessage() == f"{len(left_out)} nodes for GGUF files are left out: {said}"


def test_with_every_library_no_node_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert _serving._without_dependency() == []
    assert caplog.records == []


def test_the_pack_has_no_other_names_than_the_host_looks_for() -> None:
    import comfy_nodes
    from comfy_nodes import nodes

    assert Path(comfy_nodes.WEB_DIRECTORY, "docs").is_dir()
    for module in (comfy_nodes, nodes):
        with pytest.raises(AttributeError, match="has no attribute 'NODES'"):
            _ = module.NODES
