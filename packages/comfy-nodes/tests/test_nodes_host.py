"""Every node on the real host: what it declares, what the host's checks say, and what it gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host
from nodes_host_testing import Pack, pack, with_output
from nodes_testing import sent_by_editor

from comfy_nodes.nodes._errors import ConflictingInputsError
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._table import TABLE
from device_placement import PlacementPlan

__all__ = ["comfyui", "host", "pack"]
pytestmark = pytest.mark.host

WORKFLOWS = Path(__file__).parent / "data" / "workflows"
DEVICES = ["npu:0", "npu:1", "npu:2", "npu:3", "cpu"]


def unet(pack: Pack) -> dict[str, str]:
    """The loader's own inputs for the tiny model."""
    return {"unet_name": pack.comfyui.diffusion().name, "weight_dtype": "default"}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_host_describes_a_node_as_the_table_does(pack: Pack, row: NodeRow) -> None:
    described = pack.classes()[row.node_id].GET_NODE_INFO_V1()
    inputs = {**described["input"]["required"], **described["input"].get("optional", {})}
    assert list(inputs) == list(row.input_names)
    for widget in row.widgets:
        kind, said = inputs[widget.name]
        assert kind == widget.type_name
        assert said["tooltip"] == widget.tooltip
        assert (widget.name in described["input"].get("optional", {})) == widget.optional
        assert widget.kind != "FLOAT" or (said["min"], said["max"]) == (widget.minimum, widget.maximum)
    assert described["output"] == [output.io_type for output in row.outputs]
    assert described["category"] == row.category
    assert described["deprecated"] == row.deprecated
    assert described["output_node"] == row.is_output
    assert pack.nodes.NODE_DISPLAY_NAME_MAPPINGS[row.node_id] == row.display_name


def test_devices_are_those_of_the_machine_and_the_first_is_the_default(pack: Pack) -> None:
    inputs = pack.classes()["UNETLoaderDisTorchMultiGPU"].INPUT_TYPES()["optional"]
    assert inputs["compute_device"][1]["options"] == DEVICES
    assert inputs["compute_device"][1]["default"] == "npu:0"
    assert inputs["donor_device"][1]["default"] == "cpu"


def test_files_are_those_of_the_host_and_gguf_files_besides(pack: Pack) -> None:
    def offered(node_id: str, name: str) -> list[str]:
        options: list[str] = pack.classes()[node_id].INPUT_TYPES()["required"][name][1]["options"]
        return options

    packed = pack.comfyui.diffusion("packed").name
    assert pack.comfyui.diffusion().name in offered("UNETLoaderMultiGPU", "unet_name")
    assert not any(name.endswith(".gguf") for name in offered("UNETLoaderMultiGPU", "unet_name"))
    assert {packed, "flux1-dev-Q8_0.gguf"} == set(offered("UnetLoaderGGUFMultiGPU", "unet_name"))
    assert {"clip_l.safetensors", "t5-Q8_0.gguf"} <= set(offered("DualCLIPLoaderGGUFMultiGPU", "clip_name1"))
    for node_id, name in (("CLIPLoaderMultiGPU", "clip_name"), ("QuadrupleCLIPLoaderMultiGPU", "clip_name4")):
        assert "clip_l.safetensors" in offered(node_id, name)
        assert not any(file.endswith(".gguf") for file in offered(node_id, name))
    assert "pixel_space" in offered("VAELoaderMultiGPU", "vae_name")
    assert "wan" in offered("CLIPLoaderMultiGPU", "type")
    assert f"diffusion_models/{packed}" in offered("TorchspanPlan", "model_name")


def on_this_machine(text: str) -> Any:
    return json.loads(text.replace("cuda:", "npu:"))


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_every_historic_workflow_passes_the_checks_of_the_host(pack: Pack, file: Path) -> None:
    saved = on_this_machine(file.read_text())
    prompt = sent_by_editor(saved) if file.stem.endswith("-ui") else saved
    assert pack.check(with_output(prompt)) == {}


def node(node_id: str, **inputs: Any) -> dict[str, Any]:
    return with_output({"1": {"class_type": node_id, "inputs": inputs}})


def test_a_bad_text_is_shown_at_the_node_with_its_caret(pack: Pack) -> None:
    prompt = node("UNETLoaderDisTorchMultiGPU", **unet(pack), expert_mode_allocations="npu:0,2gb,cpu,*")
    said = pack.check(prompt)["1"]
    assert "expected ';' or the end after an amount, found ','\n    npu:0,2gb,cpu,*\n             ^" in said
    assert 'did you mean "npu:0,2gb;cpu,*"?' in said
    assert said.count("expected") == 1


@pytest.mark.parametrize("part", ["unet", "clip"])
def test_a_bad_text_of_one_part_of_a_checkpoint_is_shown_at_the_node(pack: Pack, part: str) -> None:
    devices = {"unet_compute_device": "npu:0", "clip_compute_device": "npu:0", "vae_device": "npu:0"}
    moved = {f"{each}_virtual_vram_gb": 1.0 for each in ("unet", "clip")}
    donors = {f"{each}_donor_device": "cpu" for each in ("unet", "clip")}
    inputs: dict[str, Any] = {"ckpt_name": "sd_xl_base_1.0.safetensors", **devices, **moved, **donors}
    assert pack.check(node("CheckpointLoaderAdvancedDisTorch2MultiGPU", **inputs)) == {}
    inputs[f"{part}_expert_mode_allocations"] = "npu:0,2gb,cpu,*"
    said = pack.check(node("CheckpointLoaderAdvancedDisTorch2MultiGPU", **inputs))["1"]
    assert "\n    npu:0,2gb,cpu,*\n             ^" in said


@pytest.mark.parametrize("name", ["compute_device", "donor_device"])
def test_a_device_of_another_machine_is_refused_with_those_of_this_one(pack: Pack, host: Host, name: str) -> None:
    inputs: dict[str, Any] = {**unet(pack), name: "cuda:1"}
    said = pack.check(node("UNETLoaderDisTorchMultiGPU", **inputs))
    # Older hosts (0.3.64) leave the lists of new nodes unchecked; the node itself refuses, before it loads anything.
    assert not said or f"{name}: 'cuda:1' not in {DEVICES}" in said["1"]
    with pytest.raises(Exception, match=r"cuda:1.*npu:0.*cpu"):
        pack.run("UNETLoaderDisTorchMultiGPU", **inputs)
    assert host.used() == [0, 0, 0, 0]


def test_a_device_of_another_machine_in_the_text_is_refused_before_loading(pack: Pack, host: Host) -> None:
    with pytest.raises(Exception, match=r"cuda:3.*npu:0.*cpu"):
        pack.run("UNETLoaderDisTorchMultiGPU", **unet(pack), expert_mode_allocations="cuda:3,1mb;cpu,*")
    assert host.used() == [0, 0, 0, 0]


def test_a_text_that_comes_through_a_socket_is_checked_when_it_is_there(pack: Pack) -> None:
    prompt = with_output(
        {
            "1": {
                "class_type": "UNETLoaderDisTorchMultiGPU",
                "inputs": {**unet(pack), "expert_mode_allocations": ["2", 0]},
            },
            "2": {"class_type": "PrimitiveString", "inputs": {"value": "no allocation"}},
        }
    )
    assert pack.check(prompt) == {}
    with pytest.raises(Exception, match="no allocation"):
        pack.run("UNETLoaderDisTorchMultiGPU", **unet(pack), expert_mode_allocations="no allocation")


def test_a_number_out_of_range_is_still_the_hosts_to_refuse(pack: Pack) -> None:
    said = pack.check(node("UNETLoaderDisTorchMultiGPU", **unet(pack), virtual_ram_gb=200.0))["1"]
    assert "bigger than max of 128.0" in said


def test_contradicting_names_are_both_named_by_the_node(pack: Pack, host: Host) -> None:
    inputs = {**unet(pack), "compute_device": "npu:0", "device": "npu:1"}
    assert pack.check(node("UNETLoaderDisTorchMultiGPU", **inputs)) == {}
    with pytest.raises(ConflictingInputsError, match=r"compute_device = 'npu:0' and device = 'npu:1'"):
        pack.run("UNETLoaderDisTorchMultiGPU", **inputs)


@pytest.mark.parametrize(
    ("node_id", "inputs"),
    [
        ("UNETLoaderMultiGPU", {"device": "npu:1"}),
        ("UNETLoaderDisTorchMultiGPU", {"compute_device": "npu:0", "expert_mode_allocations": "npu:1,1mb;cpu,*"}),
        ("UNETLoaderDisTorchMultiGPU", {"compute_device": "npu:0", "virtual_ram_gb": 4.0, "donor_device": "npu:1"}),
        ("UNETLoaderDisTorchMultiGPU", {"device": "npu:2", "virtual_vram_gb": 0.001, "use_other_vram": True}),
        ("UNETLoaderDisTorchMultiGPU", {"compute_device": "npu:0", "expert_mode_allocations": "auto"}),
        ("UNETLoaderDisTorch2MultiGPU", {"compute_device": "npu:0", "virtual_vram_gb": 0.0}),
        ("UNETLoaderDisTorch2MultiGPU", {"compute_device": "npu:3", "virtual_vram_gb": 0.002, "donor_device": "cpu"}),
    ],
)
def test_a_loader_gives_a_model_that_samples_as_the_stock_one(
    pack: Pack, host: Host, node_id: str, inputs: dict[str, Any]
) -> None:
    expected = host.sample(host.stock(host.diffusion()))
    host.free_all()
    output = pack.run(node_id, **unet(pack), **inputs)
    assert torch.equal(host.sample(output.args[0]), expected)


def test_the_report_is_an_output_the_nodes_text_and_one_entry_of_the_log(
    pack: Pack, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        output = pack.run("UNETLoaderDisTorchMultiGPU", **unet(pack), expert_mode_allocations="npu:0,1mb;npu:1,*")
    _, report = output.args
    for title in ("Device allocation", "Layer distribution", "Final assignment", "predicted"):
        assert title in report
    assert output.ui == {"text": (report,)}
    entries = [record for record in caplog.records if "Device allocation" in record.getMessage()]
    assert len(entries) == 1
    assert report in entries[0].getMessage()


def test_both_formats_report_with_the_same_tables(pack: Pack, host: Host) -> None:
    def lines(report: str) -> list[str]:
        return [line for line in report.splitlines() if line.startswith(("device ", "layers ", "==="))]

    text = "npu:0,1mb;cpu,*"
    safetensors = pack.run("UNETLoaderDisTorchMultiGPU", **unet(pack), expert_mode_allocations=text).args[1]
    gguf = pack.run(
        "UnetLoaderGGUFDisTorchMultiGPU", unet_name=host.diffusion("packed").name, expert_mode_allocations=text
    ).args[1]
    heads = [line.split() for line in lines(safetensors)]
    assert len(heads) == 6
    assert [line.split() for line in lines(gguf)] == heads


@pytest.mark.parametrize(
    ("node_id", "inputs"),
    [
        ("UnetLoaderGGUFMultiGPU", {"device": "npu:1"}),
        ("UnetLoaderGGUFDisTorchMultiGPU", {"compute_device": "npu:0", "expert_mode_allocations": "npu:1,1mb;cpu,*"}),
        ("UnetLoaderGGUFDisTorchLegacyMultiGPU", {"device": "npu:0", "virtual_vram_gb": 1.0, "use_other_vram": True}),
        ("UnetLoaderGGUFDisTorch2MultiGPU", {"compute_device": "npu:0", "virtual_vram_gb": 0.001}),
        (
            "UnetLoaderGGUFAdvancedDisTorchMultiGPU",
            {"dequant_dtype": "default", "patch_dtype": "default", "patch_on_device": False},
        ),
    ],
)
def test_a_gguf_loader_gives_what_its_unpacked_twin_gives(
    pack: Pack, host: Host, node_id: str, inputs: dict[str, Any]
) -> None:
    expected = host.sample(host.stock(host.diffusion("dense")))
    host.free_all()
    output = pack.run(node_id, unet_name=host.diffusion("packed").name, **inputs)
    assert torch.equal(host.sample(output.args[0]), expected)


def test_a_vae_is_loaded_where_it_is_wanted(pack: Pack, host: Host) -> None:
    output = pack.run("VAELoaderMultiGPU", vae_name="tiny_vae.safetensors", device="npu:2")
    assert str(output.args[0].device) == "npu:2"


def test_a_missing_file_is_named_with_the_folders_that_were_looked_at(pack: Pack, host: Host) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors is not among the host's diffusion_models"):
        pack.run("UNETLoaderDisTorchMultiGPU", unet_name="gone.safetensors", weight_dtype="default")


def test_a_broken_file_is_refused_and_nothing_is_left(pack: Pack, host: Host) -> None:
    with pytest.raises(Exception, match=r"flux1-dev\.safetensors"):
        pack.run("UNETLoaderDisTorchMultiGPU", unet_name="flux1-dev.safetensors", weight_dtype="default")
    assert host.used() == [0, 0, 0, 0]


def test_the_device_selector_and_the_low_precision_loader(pack: Pack, host: Host) -> None:
    assert pack.run("DeviceSelectorMultiGPU", device="npu:1").args == ("npu:1",)
    model = pack.run("UNetLoaderLP", unet_name=host.diffusion().name).args[0]
    expected = host.sample(host.stock(host.diffusion()))
    assert torch.equal(host.sample(model), expected)


def test_a_dry_run_loads_nothing_and_shows_everything(pack: Pack, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        output = pack.run(
            "TorchspanPlan",
            model_name=f"diffusion_models/{host.diffusion().name}",
            expert_mode_allocations="npu:0,2mb;npu:1,*",
            compute_seconds=0.01,
        )
    report, plan_json, allocation, picture = output.args
    assert host.used() == [0, 0, 0, 0]
    plan = PlacementPlan.from_json(plan_json)
    assert plan.size_bytes == sum(plan.bytes_on(name) for name in ("npu:0", "npu:1"))
    assert allocation == f"npu:0,{plan.bytes_on('npu:0')}b;npu:1,*"
    assert "predicted" in report
    assert "x all resident" in report
    assert sum(report in record.getMessage() for record in caplog.records) == 1
    assert picture.shape[0] == 1
    shown = output.ui["images"][0]
    saved = pack.folder / "temp" / shown["subfolder"] / shown["filename"]
    assert saved.stat().st_size > 1000
    assert output.ui["text"] == (report,)


def test_the_allocation_of_a_dry_run_gives_the_same_placement(pack: Pack, host: Host) -> None:
    name = f"diffusion_models/{host.diffusion().name}"
    first = pack.run("TorchspanPlan", model_name=name, virtual_ram_gb=0.003, donor_device="npu:1")
    again = pack.run("TorchspanPlan", model_name=name, expert_mode_allocations=first.args[2])
    one, other = (PlacementPlan.from_json(output.args[1]) for output in (first, again))
    for device in ("npu:0", "npu:1"):
        assert one.bytes_on(device) == other.bytes_on(device)


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_dry_run_of_nothing_moved_keeps_everything_where_it_computes(pack: Pack, host: Host, kind: str) -> None:
    name = f"diffusion_models/{host.diffusion(kind).name}"
    output = pack.run("TorchspanPlan", model_name=name, virtual_ram_gb=0.0)
    plan = PlacementPlan.from_json(output.args[1])
    assert plan.bytes_on("npu:0") == plan.size_bytes
    assert output.args[2] == "npu:0,*"


def test_the_doctor_names_every_device(pack: Pack) -> None:
    output = pack.run("TorchspanDoctor")
    for device in DEVICES:
        assert f"\n{device} " in output.args[0]
    assert "torch sees" in output.args[0]
    assert output.ui == {"text": output.args}


def test_release_empties_one_device_and_passes_its_input_on(pack: Pack, host: Host) -> None:
    model = pack.run("UNETLoaderMultiGPU", **unet(pack), device="npu:1").args[0]
    host.sample(model)
    assert host.used()[1] > 0
    something = object()
    output = pack.run("TorchspanRelease", anything=something, device="npu:1")
    assert output.args[0] is something
    assert re.fullmatch(r"[\d.]+ (KiB|MiB|GiB) of models left npu:1", output.args[1])
    assert host.used() == [0, 0, 0, 0]
    assert pack.run("TorchspanRelease").args[0] is None


def test_nodes_that_look_at_the_machine_are_never_taken_from_the_cache(pack: Pack) -> None:
    for node_id in ("TorchspanPlan", "TorchspanDoctor", "TorchspanRelease"):
        made = pack.classes()[node_id]
        assert made.fingerprint_inputs() != made.fingerprint_inputs()
