"""The pack in a real server: all ids are offered, older prompts are understood, pages and examples are found."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from comfy_nodes.nodes.table._table import TABLE
from comfyui_server import Server
from comfyui_workflows import node, sampling

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "packages/comfy-nodes/src/comfy_nodes"
FLUX = "tiny_flux.safetensors"
GGUF = "tiny_flux_q8_0.gguf"


def test_every_id_is_offered_with_its_inputs_in_order(device_server: Server) -> None:
    offered = device_server.get("/object_info")
    for row in TABLE.values():
        described = offered[row.node_id]
        names = [*described["input_order"].get("required", []), *described["input_order"].get("optional", [])]
        assert names == list(row.input_names)
        assert described["python_module"].startswith("custom_nodes.")


OLDER: dict[str, dict[str, Any]] = {
    "1.5.0": {"unet_name": GGUF, "device": "npu:0", "allocations": "npu:0,0.0001;cpu,0.5"},
    "1.5.0, saved by the editor": {
        "unet_name": GGUF,
        "compute_device": "npu:0",
        "virtual_ram_gb": "npu:0,0.0001;cpu,0.5",
        "donor_device": "cpu",
        "expert_mode_allocations": "",
    },
    "1.6": {"unet_name": GGUF, "device": "npu:0", "virtual_vram_gb": 4.0, "use_other_vram": True},
    "1.6, saved by the editor": {
        "unet_name": GGUF,
        "compute_device": "npu:0",
        "virtual_ram_gb": 4.0,
        "donor_device": False,
        "expert_mode_allocations": "",
    },
}


@pytest.mark.parametrize("layout", OLDER)
def test_an_older_prompt_runs_and_places_the_model(device_server: Server, layout: str) -> None:
    loader = node("UnetLoaderGGUFDisTorchMultiGPU", **OLDER[layout])
    finished = device_server.run(sampling("flux", loader, seed=3))
    assert not finished.message
    (model,) = (entry for entry in device_server.state()["loaded"] if entry["planned"])
    assert model["load_device"] == "npu:0"
    # The other accelerators come before the cpu, and the first of them has room for all of it.
    assert set(model["planned"]) == ({"npu:1"} if layout == "1.6" else {"cpu"})
    device_server.free()


def test_a_contradiction_is_named_and_nothing_is_loaded(device_server: Server) -> None:
    device_server.free()
    loader = node(
        "UNETLoaderDisTorchMultiGPU", unet_name=FLUX, weight_dtype="default", compute_device="npu:0", device="npu:1"
    )
    finished = device_server.run(sampling("flux", loader, seed=3))
    assert "compute_device = 'npu:0' and device = 'npu:1' both say where the model computes" in finished.message
    assert device_server.state()["loaded"] == []


def test_a_dry_run_gives_its_texts_and_its_picture(device_server: Server) -> None:
    device_server.free()
    plan = node(
        "TorchspanPlan", model_name=f"diffusion_models/{FLUX}", expert_mode_allocations="auto", compute_seconds=0.1
    )
    finished = device_server.run({"plan": plan})
    assert not finished.message
    shown = finished.outputs["plan"]
    assert "Final assignment" in shown["text"][0]
    assert shown["images"][0]["type"] == "temp"
    assert device_server.state()["loaded"] == []


def test_pages_examples_and_texts_are_found(device_server: Server) -> None:
    offered = device_server.get("/workflow_templates")
    names = {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
    assert names <= set(offered["torchspan"])
    one = sorted(names)[0]
    example = device_server.get(f"/api/workflow_templates/torchspan/{quote(one)}.json")
    assert example == json.loads((ROOT / "example_workflows" / f"{one}.json").read_text())
    picture = f"{device_server.url}/api/workflow_templates/torchspan/{quote(one)}.jpg"
    with urllib.request.urlopen(picture, timeout=30) as answer:
        assert answer.headers.get_content_type() == "image/jpeg"
        assert answer.read() == (ROOT / "example_workflows" / f"{one}.jpg").read_bytes()
    page = f"{device_server.url}/extensions/torchspan/docs/TorchspanPlan.md"
    with urllib.request.urlopen(page, timeout=30) as answer:
        assert answer.read().decode() == (PACK / "web/docs/TorchspanPlan.md").read_text()
    texts = device_server.get("/i18n")["en"]["nodeDefs"]
    assert set(TABLE) <= set(texts)
    assert texts["TorchspanPlan"]["display_name"] == TABLE["TorchspanPlan"].display_name
