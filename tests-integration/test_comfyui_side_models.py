"""Models that work beside a diffusion model, on the real host: ControlNets, image encoders and folders of diffusers.

Each is loaded by the stock node and by ours: the same bits, the weights where the node says, or a refusal in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_server import Server
from comfyui_side_models import CONTROL_NET, DIFFERENCE, DIFFUSERS, IMAGE_ENCODER
from comfyui_workflows import Node, Workflow, expert, node, sampling, stock_unet, unet_file

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1800)]
STANDARD = {"virtual_ram_gb": 0.01, "donor_device": "npu:2", "expert_mode_allocations": ""}
DISTORCH2 = {
    "virtual_vram_gb": 0.01,
    "donor_device": "cpu",
    "expert_mode_allocations": "",
    "eject_models": True,
}
WAYS: dict[str, tuple[str, str, dict[str, Any], set[str]]] = {
    "plain": ("MultiGPU", "device", {}, set()),
    "standardized": ("DisTorchMultiGPU", "compute_device", STANDARD, {"npu:2"}),
    "distorch2": ("DisTorch2MultiGPU", "compute_device", DISTORCH2, {"cpu"}),
    "expert": (
        "DisTorchMultiGPU",
        "compute_device",
        {**STANDARD, "expert_mode_allocations": "npu:1,25%;npu:2,40%;cpu,*"},
        {"npu:2", "cpu"},
    ),
}
"""Ending of the node's id, its name for the compute device, its other inputs, and the donors that come of them."""


@pytest.fixture(autouse=True)
def clean(device_server: Server, part_models: Path) -> Iterator[None]:
    """Each test begins with empty devices, and ends without a broken order of copies and kernels."""
    device_server.free()
    yield
    assert device_server.state()["simulated"]["violations"] == []


def on_second(loader: str, way: str, **inputs: Any) -> Node:
    """Our node for a core loader, with `npu:1` for its device; the host's own is `npu:0`."""
    ending, device, controls, _ = WAYS[way]
    if loader == "CLIPVisionLoader" and way == "distorch2":
        device = "device"
    return node(f"{loader}{ending}", **inputs, **{device: "npu:1"}, **controls)


def weights_of(server: Server, model: str, donors: set[str]) -> dict[str, int]:
    """Bytes of a loaded model on each device, of which the plan gave these donors theirs."""
    (entry,) = (entry for entry in server.state()["loaded"] if entry["model"] == model)
    assert entry["load_device"] == "npu:1"
    assert set(entry["planned"]) == donors
    weights: dict[str, int] = entry["weights"]
    assert {device: weights[device] for device in donors} == entry["planned"]
    return weights


def latent_of(server: Server, workflow: Workflow) -> torch.Tensor:
    return server.latent(server.run(workflow))


def controlled(control: Node, model: Node | None = None) -> Workflow:
    """Sample the tiny SD 1.5 under a control."""
    workflow = sampling("sd15", model or stock_unet(unet_file("sd15")))
    workflow["control"] = control
    workflow["hint"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x3A7F15)
    workflow["apply"] = node(
        "ControlNetApplyAdvanced",
        positive=["text", 0],
        negative=["text", 0],
        control_net=["control", 0],
        image=["hint", 0],
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    workflow["sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return workflow


STOCK_CONTROL = node("ControlNetLoader", control_net_name=CONTROL_NET)
STOCK_DIFFERENCE = node("DiffControlNetLoader", model=["model", 0], control_net_name=DIFFERENCE)


@pytest.mark.parametrize("way", WAYS)
def test_a_control_net_gives_the_stock_nodes_bits(device_server: Server, way: str) -> None:
    free = latent_of(device_server, sampling("sd15", stock_unet(unet_file("sd15"))))
    stock = latent_of(device_server, controlled(STOCK_CONTROL))
    assert not torch.equal(stock, free)
    device_server.free()
    loader = on_second("ControlNetLoader", way, control_net_name=CONTROL_NET)
    assert torch.equal(latent_of(device_server, controlled(loader)), stock)
    # It computes where the sampler does; its weights wait elsewhere.
    assert "npu:0" not in weights_of(device_server, "ControlNet", WAYS[way][3])


def test_a_placed_control_net_on_a_placed_model(device_server: Server) -> None:
    stock = latent_of(device_server, controlled(STOCK_CONTROL))
    device_server.free()
    control = on_second("ControlNetLoader", "expert", control_net_name=CONTROL_NET)
    assert torch.equal(latent_of(device_server, controlled(control, expert(unet_file("sd15")))), stock)
    weights_of(device_server, "ControlNet", {"npu:2", "cpu"})
    (model,) = (entry for entry in device_server.state()["loaded"] if entry["model"] == "BaseModel")
    assert set(model["planned"]) == {"npu:1", "cpu"}


@pytest.mark.parametrize("way", WAYS)
def test_a_difference_to_a_model_gives_the_stock_nodes_bits(device_server: Server, way: str) -> None:
    stock = latent_of(device_server, controlled(STOCK_DIFFERENCE))
    assert not torch.equal(stock, latent_of(device_server, controlled(STOCK_CONTROL)))
    device_server.free()
    loader = on_second("DiffControlNetLoader", way, model=["model", 0], control_net_name=DIFFERENCE)
    assert torch.equal(latent_of(device_server, controlled(loader, expert(unet_file("sd15")))), stock)
    assert "npu:0" not in weights_of(device_server, "ControlNet", WAYS[way][3])


@pytest.mark.parametrize("way", WAYS)
def test_a_control_that_moves_itself_is_refused_with_an_error(device_server: Server, way: str) -> None:
    name = "control_lora.safetensors"
    path = device_server.base / "models" / "controlnet" / name
    save_file({"lora_controlnet": torch.zeros(1)}, path)
    try:
        finished = device_server.run(controlled(on_second("ControlNetLoader", way, control_net_name=name)))
    finally:
        path.unlink()
    assert finished.error is not None
    assert finished.error["node_id"] == "control"
    assert f"{name} cannot be placed as asked: a ControlLora has no weights" in finished.message
    assert "use the core loader" in finished.message


def seen(loader: Node) -> Workflow:
    """What an image encoder makes of an image of one colour."""
    return {
        "model": loader,
        "image": node("EmptyImage", width=224, height=224, batch_size=1, color=0x3A7F15),
        "encode": node("CLIPVisionEncode", clip_vision=["model", 0], image=["image", 0], crop="center"),
        "show": node("TorchspanProbeVision", seen=["encode", 0]),
        "save": node("SaveLatent", samples=["show", 0], filename_prefix="seen"),
    }


def test_an_image_encoder_gives_the_stock_nodes_bits(device_server: Server) -> None:
    stock = latent_of(device_server, seen(node("CLIPVisionLoader", clip_name=IMAGE_ENCODER)))
    assert stock.isfinite().all()
    assert stock.std() > 0.1
    for way, (*_, donors) in WAYS.items():
        device_server.free()
        loader = on_second("CLIPVisionLoader", way, clip_name=IMAGE_ENCODER)
        assert torch.equal(latent_of(device_server, seen(loader)), stock), way
        weights = weights_of(device_server, "CLIPVisionModelProjection", donors)
        assert set(weights) == {"npu:1"} | donors, way


def pictured(loader: Node) -> Workflow:
    """Text, model and autoencoder of one folder, all three at work."""
    workflow = sampling("sd15", loader, steps=1)
    workflow["text"] = node("CLIPTextEncode", clip=["model", 1], text="a red fox in the snow")
    workflow["image"] = node("VAEDecode", samples=["sample", 0], vae=["model", 2])
    workflow["again"] = node("VAEEncode", pixels=["image", 0], vae=["model", 2])
    workflow["save"] = node("SaveLatent", samples=["again", 0], filename_prefix="folder")
    return workflow


def test_a_folder_of_diffusers_gives_the_stock_nodes_bits(device_server: Server) -> None:
    stock = latent_of(device_server, pictured(node("DiffusersLoader", model_path=DIFFUSERS)))
    assert stock.isfinite().all()
    for way, (*_, donors) in WAYS.items():
        device_server.free()
        loader = on_second("DiffusersLoader", way, model_path=DIFFUSERS)
        assert torch.equal(latent_of(device_server, pictured(loader)), stock), way
        weights_of(device_server, "BaseModel", donors)
        memory = device_server.state()["simulated"]["memory"]
        # Text encoder and autoencoder follow the device of the node.
        assert memory["npu:0"]["used"] == 0, way


@pytest.mark.parametrize(
    ("loader", "inputs"),
    [
        ("ControlNetLoader", {"control_net_name": CONTROL_NET}),
        ("CLIPVisionLoader", {"clip_name": IMAGE_ENCODER}),
        ("DiffusersLoader", {"model_path": DIFFUSERS}),
    ],
)
def test_a_donor_that_is_too_small_is_refused_before_anything_is_loaded(
    device_server: Server, loader: str, inputs: dict[str, Any]
) -> None:
    refused = on_second(loader, "expert", **inputs)
    refused["inputs"]["expert_mode_allocations"] = "npu:1,1mb;npu:2,*"
    workflows: dict[str, Callable[[Node], Workflow]] = {
        "ControlNetLoader": controlled,
        "CLIPVisionLoader": seen,
        "DiffusersLoader": pictured,
    }
    with device_server.capacity(2, 2 << 20):
        finished = device_server.run(workflows[loader](refused))
    assert finished.error is not None
    assert finished.error["node_id"] == ("control" if loader == "ControlNetLoader" else "model")
    assert "npu:2" in finished.message
    memory = device_server.state()["simulated"]["memory"]
    assert [memory[f"npu:{index}"]["used"] for index in (1, 2)] == [0, 0]
