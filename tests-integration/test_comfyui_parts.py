"""Text encoders, autoencoders and whole checkpoints on the real host: placed, and the same bits as the stock nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_checkpoints import CHECKPOINT, TEXT_ENCODER, VAE
from comfyui_server import Server
from comfyui_workflows import SPLIT, Node, Workflow, node, sampling, stock_unet, unet_file

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]
CONTROLS = {"virtual_ram_gb": 0.02, "donor_device": "npu:2", "expert_mode_allocations": ""}


@pytest.fixture(autouse=True)
def clean(device_server: Server, large_models: Path) -> Iterator[None]:
    """Each test begins with empty devices, and ends without a broken order of copies and kernels."""
    device_server.free()
    yield
    assert device_server.state()["simulated"]["violations"] == []


def donors_of(server: Server, *, beside: str) -> list[set[str]]:
    """Donors of each loaded model but `beside`; models without a plan have none."""
    return [set(entry["planned"]) for entry in server.state()["loaded"] if entry["model"] not in (beside, "Bank")]


def encoded(clip: Node) -> Workflow:
    """Sample the tiny SD 1.5 with a text encoded by this CLIP."""
    workflow = sampling("sd15", stock_unet(unet_file("sd15")), steps=1)
    workflow["clip"] = clip
    workflow["text"] = node("CLIPTextEncode", clip=["clip", 0], text="a red fox in the snow")
    return workflow


STOCK_CLIP = node("CLIPLoader", clip_name=TEXT_ENCODER, type="stable_diffusion", device="default")
CLIPS: dict[str, tuple[Node, set[str]]] = {
    "plain": (node("CLIPLoaderMultiGPU", clip_name=TEXT_ENCODER, type="stable_diffusion", device="npu:0"), set()),
    "standardized": (
        node(
            "CLIPLoaderDisTorchMultiGPU",
            clip_name=TEXT_ENCODER,
            type="stable_diffusion",
            compute_device="npu:0",
            **CONTROLS,
        ),
        {"npu:2"},
    ),
    "expert": (
        node(
            "CLIPLoaderDisTorchMultiGPU",
            clip_name=TEXT_ENCODER,
            type="stable_diffusion",
            compute_device="npu:0",
            **{**CONTROLS, "expert_mode_allocations": SPLIT},
        ),
        {"npu:1", "cpu"},
    ),
}


@pytest.mark.parametrize("way", CLIPS)
def test_a_text_encoder_gives_the_stock_nodes_bits(device_server: Server, way: str) -> None:
    loader, donors = CLIPS[way]
    stock = device_server.latent(device_server.run(encoded(STOCK_CLIP)))
    device_server.free()
    assert torch.equal(device_server.latent(device_server.run(encoded(loader))), stock)
    assert donors_of(device_server, beside="BaseModel") == [donors]


def decoded(vae: Node) -> Workflow:
    """Encode a sampled picture again, so that what the autoencoder computes comes back as a latent."""
    workflow = sampling("sd15", stock_unet(unet_file("sd15")), steps=1)
    workflow["vae"] = vae
    workflow["image"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    workflow["again"] = node("VAEEncode", pixels=["image", 0], vae=["vae", 0])
    workflow["save"] = node("SaveLatent", samples=["again", 0], filename_prefix="again")
    return workflow


VAES: dict[str, tuple[Node, set[str]]] = {
    "plain": (node("VAELoaderMultiGPU", vae_name=VAE, device="npu:1"), set()),
    "standardized": (
        node(
            "VAELoaderDisTorchMultiGPU", vae_name=VAE, compute_device="npu:0", **{**CONTROLS, "virtual_ram_gb": 0.001}
        ),
        {"npu:2"},
    ),
    "expert": (
        node(
            "VAELoaderDisTorchMultiGPU",
            vae_name=VAE,
            compute_device="npu:0",
            **{**CONTROLS, "expert_mode_allocations": SPLIT},
        ),
        {"npu:1", "cpu"},
    ),
}


@pytest.mark.parametrize("way", VAES)
def test_an_autoencoder_gives_the_stock_nodes_bits(device_server: Server, way: str) -> None:
    loader, donors = VAES[way]
    stock = device_server.latent(device_server.run(decoded(node("VAELoader", vae_name=VAE))))
    device_server.free()
    assert torch.equal(device_server.latent(device_server.run(decoded(loader))), stock)
    assert donors_of(device_server, beside="BaseModel") == [donors]


def checkpoint(loader: Node) -> Workflow:
    """Model, text encoder and autoencoder of one file, all three at work."""
    workflow = sampling("sd15", loader, steps=1)
    workflow["text"] = node("CLIPTextEncode", clip=["model", 1], text="a red fox in the snow")
    workflow["image"] = node("VAEDecode", samples=["sample", 0], vae=["model", 2])
    workflow["again"] = node("VAEEncode", pixels=["image", 0], vae=["model", 2])
    workflow["save"] = node("SaveLatent", samples=["again", 0], filename_prefix="whole")
    return workflow


STOCK_CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
CHECKPOINTS: dict[str, Node] = {
    "plain": node("CheckpointLoaderSimpleMultiGPU", ckpt_name=CHECKPOINT, device="npu:0"),
    "standardized": node(
        "CheckpointLoaderSimpleDisTorchMultiGPU", ckpt_name=CHECKPOINT, compute_device="npu:0", **CONTROLS
    ),
    "advanced": node(
        "CheckpointLoaderAdvancedMultiGPU",
        ckpt_name=CHECKPOINT,
        unet_device="npu:0",
        clip_device="npu:1",
        vae_device="npu:2",
    ),
    "advanced-distorch2": node(
        "CheckpointLoaderAdvancedDisTorch2MultiGPU",
        ckpt_name=CHECKPOINT,
        unet_compute_device="npu:0",
        unet_virtual_vram_gb=0.02,
        unet_donor_device="npu:1",
        clip_compute_device="npu:1",
        clip_virtual_vram_gb=0.02,
        clip_donor_device="cpu",
        vae_device="npu:2",
        unet_expert_mode_allocations="",
        clip_expert_mode_allocations="",
        high_precision_loras=True,
        eject_models=True,
    ),
}


@pytest.mark.parametrize("way", CHECKPOINTS)
def test_a_checkpoint_gives_the_stock_nodes_bits(device_server: Server, way: str) -> None:
    stock = device_server.latent(device_server.run(checkpoint(STOCK_CHECKPOINT)))
    device_server.free()
    assert torch.equal(device_server.latent(device_server.run(checkpoint(CHECKPOINTS[way]))), stock)


def test_the_parts_of_a_checkpoint_are_where_they_were_put(device_server: Server) -> None:
    finished = device_server.run(checkpoint(CHECKPOINTS["advanced-distorch2"]))
    assert not finished.message
    state: dict[str, Any] = device_server.state()
    (unet,) = (entry for entry in state["loaded"] if entry["model"] == "BaseModel")
    assert unet["load_device"] == "npu:0"
    assert set(unet["planned"]) == {"npu:1"}
    assert {entry["load_device"] for entry in state["loaded"]} == {"npu:0", "npu:1", "npu:2"}
