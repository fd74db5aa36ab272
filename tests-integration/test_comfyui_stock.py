"""The ground that the tests on the real host stand on: it takes the tiny models, and runs on simulated devices."""

from __future__ import annotations

import pytest
import torch

from comfyui_checkpoints import TEXT_ENCODER, VAE
from comfyui_server import Server
from comfyui_tiny_models import TINY_MODELS
from comfyui_workflows import node, sampling, stock_unet, unet_file

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]
MODELS = tuple(TINY_MODELS)
LOADED_AS = {"flux": "Flux", "wan": "WAN21", "ltxv": "LTXV", "sd15": "BaseModel"}


def stock_latent(server: Server, name: str, **options: object) -> torch.Tensor:
    workflow = sampling(name, stock_unet(unet_file(name)), **options)  # type: ignore[arg-type]
    return server.latent(server.run(workflow))


@pytest.mark.parametrize("name", MODELS)
def test_detection_takes_the_tiny_model_and_samples_it(cpu_server: Server, name: str) -> None:
    latent = stock_latent(cpu_server, name, seed=11)
    assert latent.shape == TINY_MODELS[name].latent_shape
    assert latent.isfinite().all()
    assert latent.std() > 0.1
    assert LOADED_AS[name] in {entry["model"] for entry in cpu_server.state()["loaded"]}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(cpu_server: Server, name: str) -> None:
    first = stock_latent(cpu_server, name, seed=21)
    cpu_server.free()
    assert torch.equal(stock_latent(cpu_server, name, seed=21), first)
    assert not torch.equal(stock_latent(cpu_server, name, seed=22), first)


@pytest.mark.parametrize("name", MODELS)
def test_the_lora_files_change_the_output_in_both_directions(cpu_server: Server, name: str) -> None:
    plain = stock_latent(cpu_server, name, seed=31)
    file = f"tiny_{name}_lora.safetensors"
    patched = stock_latent(cpu_server, name, seed=31, lora=(file, 1.0))
    against = stock_latent(cpu_server, name, seed=31, lora=(file, -1.0))
    assert patched.isfinite().all()
    assert not torch.equal(patched, plain)
    assert not torch.equal(patched, against)


def test_the_dense_twin_of_the_gguf_file_is_near_the_original_and_not_equal(cpu_server: Server) -> None:
    original = stock_latent(cpu_server, "flux", seed=41)
    workflow = sampling("flux", stock_unet("tiny_flux_q8_0_dense.safetensors"), seed=41)
    twin = cpu_server.latent(cpu_server.run(workflow))
    difference = (twin - original).norm() / original.norm()
    assert 0 < difference < 0.05


def test_the_tiny_vae_decodes(cpu_server: Server) -> None:
    workflow = sampling("sd15", stock_unet(unet_file("sd15")), seed=51)
    workflow["vae"] = node("VAELoader", vae_name=VAE)
    workflow["decode"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    workflow["image"] = node("SaveImage", images=["decode", 0], filename_prefix="decoded")
    finished = cpu_server.run(workflow)
    assert not finished.message
    (image,) = finished.outputs["image"]["images"]
    assert (cpu_server.base / "output" / image["filename"]).stat().st_size > 1000


@pytest.mark.usefixtures("large_models")
def test_the_tiny_text_encoder_conditions(cpu_server: Server) -> None:
    latents = []
    for text in ("a red fox", "a blue whale"):
        workflow = sampling("sd15", stock_unet(unet_file("sd15")), seed=61)
        workflow["clip"] = node("CLIPLoader", clip_name=TEXT_ENCODER, type="stable_diffusion")
        workflow["text"] = node("CLIPTextEncode", clip=["clip", 0], text=text)
        latents.append(cpu_server.latent(cpu_server.run(workflow)))
    assert not torch.equal(*latents)


@pytest.mark.parametrize("name", MODELS)
def test_simulated_devices_run_the_host_unchanged(device_server: Server, name: str) -> None:
    latent = stock_latent(device_server, name, seed=71)
    assert latent.isfinite().all()
    state = device_server.state()
    loaded = next(entry for entry in state["loaded"] if entry["model"] == LOADED_AS[name])
    assert loaded["load_device"] == "npu:0"
    assert loaded["weights"] == {"npu:0": loaded["model_size"]}
    simulated = state["simulated"]
    assert simulated["memory"]["npu:0"]["used"] >= loaded["model_size"]
    assert simulated["memory"]["npu:1"]["used"] == simulated["memory"]["npu:2"]["used"] == 0
    assert simulated["violations"] == []


def test_free_empties_the_devices(device_server: Server) -> None:
    stock_latent(device_server, "flux", seed=81)
    device_server.free()
    state = device_server.state()
    assert state["loaded"] == []
    assert state["simulated"]["memory"]["npu:0"]["used"] == 0


def test_what_is_wrong_is_reported_by_the_node(cpu_server: Server) -> None:
    """The harness shows both kinds of failure: refused before anything runs, and raised by a node."""
    refused = cpu_server.run(sampling("flux", stock_unet("not_there.safetensors")))
    assert refused.node_errors
    assert "not_there.safetensors" in refused.message
    mismatch = sampling("flux", stock_unet(unet_file("flux")))
    mismatch["text"]["inputs"]["width"] = 12
    raised = cpu_server.run(mismatch)
    assert raised.error is not None
    assert raised.error["node_id"] == "sample"
    assert "12" in raised.message
