"""Every way to place a model, on the real host: the same bits as the stock nodes, the bytes where the plan says.

The accelerators are simulated and strict: an operator that meets a tensor of another device raises, and so does a copy
that nothing waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from comfyui_server import Server
from comfyui_tiny_models import TINY_MODELS
from comfyui_workflows import (
    GGUF_DENSE,
    GGUF_FILE,
    Node,
    distorch2,
    expert,
    legacy,
    plain,
    sampling,
    standardized,
    standardized_cpu,
    stock_unet,
    unet_file,
    with_inputs,
)

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]
MODELS = tuple(TINY_MODELS)
PLACED: dict[str, Callable[[str], Node]] = {
    "standardized": standardized,
    "standardized-cpu": standardized_cpu,
    "distorch2": distorch2,
    "expert": expert,
}
DONORS = {
    "standardized": {"npu:2"},
    "standardized-cpu": {"cpu"},
    "distorch2": {"npu:1"},
    "expert": {"npu:1", "cpu"},
    # All other accelerators, then the host: the first has room for all of it.
    "legacy": {"npu:1"},
}
ROUNDED_TO = 512
TIGHT_BYTES = 1 << 30
"""So little that the host, which keeps room for activations, loads nothing whole."""

SEED = 5


@pytest.fixture(autouse=True)
def clean(device_server: Server) -> Iterator[None]:
    """Each test begins with empty devices, and ends without a broken order of copies and kernels."""
    device_server.free()
    yield
    assert device_server.state()["simulated"]["violations"] == []


def latent_of(server: Server, name: str, loader: Node, **options: Any) -> torch.Tensor:
    return server.latent(server.run(sampling(name, loader, **{"seed": SEED, **options})))


def stock_of(server: Server, name: str, file: str, **options: Any) -> torch.Tensor:
    latent = latent_of(server, name, stock_unet(file), **options)
    server.free()
    return latent


def placed_model(server: Server) -> dict[str, Any]:
    """The one loaded model that has a plan."""
    (entry,) = (entry for entry in server.state()["loaded"] if entry["planned"])
    return dict(entry)


@pytest.mark.parametrize("way", PLACED)
@pytest.mark.parametrize("name", MODELS)
def test_a_placed_model_gives_the_stock_nodes_bits(device_server: Server, name: str, way: str) -> None:
    stock = stock_of(device_server, name, unet_file(name))
    placed = latent_of(device_server, name, PLACED[way](unet_file(name)))
    assert torch.equal(placed, stock)
    model = placed_model(device_server)
    assert set(model["planned"]) == DONORS[way]


@pytest.mark.parametrize("way", [*PLACED, "legacy"])
def test_a_gguf_file_gives_the_bits_of_its_dequantised_twin(device_server: Server, way: str) -> None:
    stock = stock_of(device_server, "flux", GGUF_DENSE)
    loader = {**PLACED, "legacy": legacy}[way](GGUF_FILE)
    assert torch.equal(latent_of(device_server, "flux", loader), stock)
    assert set(placed_model(device_server)["planned"]) == DONORS[way]


@pytest.mark.parametrize(("name", "file", "twin"), [(n, unet_file(n), unet_file(n)) for n in MODELS] + [
    ("flux", GGUF_FILE, GGUF_DENSE)
])  # fmt: skip
def test_a_plain_node_computes_where_it_says(device_server: Server, name: str, file: str, twin: str) -> None:
    stock = stock_of(device_server, name, twin)
    assert torch.equal(latent_of(device_server, name, plain(file)), stock)
    (model,) = device_server.state()["loaded"]
    assert model["load_device"] == "npu:1"
    assert set(model["weights"]) == {"npu:1"}


@pytest.mark.parametrize(("name", "file"), [*((n, unet_file(n)) for n in MODELS), ("flux", GGUF_FILE)])
def test_bytes_are_where_the_plan_says(device_server: Server, name: str, file: str) -> None:
    latent_of(device_server, name, expert(file))
    state = device_server.state()
    model = placed_model(device_server)
    total = sum(model["weights"].values())
    assert {device: size for device, size in model["weights"].items() if device != "npu:0"} == model["planned"]
    assert 0 < model["weights"]["npu:1"] <= 0.4 * total
    memory = state["simulated"]["memory"]
    donor, computing = memory["npu:1"]["used"], memory["npu:0"]["used"]
    # A device rounds each tensor up; a model of this size has a few hundred.
    assert model["weights"]["npu:1"] <= donor <= model["weights"]["npu:1"] + 400 * ROUNDED_TO
    assert model["weights"]["npu:0"] <= computing
    assert memory["npu:2"]["used"] == 0


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("flux", "standardized"),
        ("flux", "expert"),
        ("wan", "expert"),
        ("wan", "standardized-cpu"),
        ("ltxv", "standardized"),
        ("sd15", "expert"),
    ],
)
def test_a_lora_gives_the_stock_nodes_bits_on_and_off(device_server: Server, name: str, way: str) -> None:
    lora = f"tiny_{name}_lora.safetensors"
    stock = {
        strength: stock_of(device_server, name, unet_file(name), lora=None if strength is None else (lora, strength))
        for strength in (None, 1.0, -0.5)
    }
    loader = PLACED[way](unet_file(name))
    for strength in (1.0, None, -0.5, 1.0):
        placed = latent_of(device_server, name, loader, lora=None if strength is None else (lora, strength))
        assert torch.equal(placed, stock[strength]), strength


def test_donors_survive_free_and_the_model_comes_back(device_server: Server) -> None:
    first = latent_of(device_server, "flux", expert(unet_file("flux")))
    before = placed_model(device_server)["weights"]
    device_server.free()
    memory = device_server.state()["simulated"]["memory"]
    assert {name: entry["used"] for name, entry in memory.items()} == {"npu:0": 0, "npu:1": 0, "npu:2": 0}
    assert torch.equal(latent_of(device_server, "flux", expert(unet_file("flux"))), first)
    assert placed_model(device_server)["weights"] == before


@pytest.mark.parametrize("file", [unet_file("flux"), GGUF_FILE])
def test_free_during_sampling_takes_effect_when_it_is_done(device_server: Server, file: str) -> None:
    expected = latent_of(device_server, "flux", expert(file), steps=8)
    device_server.free()
    with ThreadPoolExecutor(1) as pool:
        sampled = pool.submit(latent_of, device_server, "flux", expert(file), steps=8)
        while not device_server.state()["loaded"]:
            assert not sampled.done()
            time.sleep(0.02)
        device_server.post("/free", {"unload_models": True, "free_memory": True})
        assert torch.equal(sampled.result(), expected)
    device_server.wait_until_idle()
    state = device_server.state()
    assert state["loaded"] == []
    assert all(entry["used"] == 0 for entry in state["simulated"]["memory"].values())


def test_models_that_follow_each_other_do_not_disturb_each_other(device_server: Server) -> None:
    stock = {name: stock_of(device_server, name, unet_file(name)) for name in MODELS}
    for name in (*MODELS, *MODELS):
        assert torch.equal(latent_of(device_server, name, expert(unet_file(name))), stock[name]), name


def test_twenty_workflows_in_a_row_leak_nothing(device_server: Server) -> None:
    loaders = [standardized, expert, distorch2, plain, standardized_cpu]

    def round_of(first_seed: int) -> dict[str, Any]:
        for index in range(10):
            name = MODELS[index % 3]
            loader = loaders[index % len(loaders)](unet_file(name))
            device_server.latent(device_server.run(sampling(name, loader, seed=first_seed + index)))
        device_server.free()
        state: dict[str, Any] = device_server.state()
        return state

    before, after = round_of(100), round_of(200)
    for state in (before, after):
        assert state["loaded"] == []
        assert all(entry["used"] == 0 for entry in state["simulated"]["memory"].values())
    assert (after["threads"], after["files"]) == (before["threads"], before["files"])
    # What the allocator keeps varies by a few megabytes; ten leaked models would be fifty.
    assert after["resident_bytes"] - before["resident_bytes"] < 24 << 20


def test_the_report_is_an_output_and_in_the_log(device_server: Server) -> None:
    workflow = sampling("flux", standardized(unet_file("flux")), seed=SEED)
    workflow["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["model", 1]}}
    finished = device_server.run(workflow)
    assert not finished.message
    (text,) = finished.outputs["show"]["text"]
    for title in ("Device allocation", "Layer distribution", "Final assignment"):
        assert title in text
        assert title in device_server.log


BAD: dict[str, tuple[Node, tuple[str, ...]]] = {
    "device-not-there": (with_inputs(plain(unet_file("flux")), device="cuda:3"), ("cuda:3", "npu:0")),
    "donor-not-there": (with_inputs(standardized(unet_file("flux")), donor_device="cuda:1"), ("cuda:1", "npu:0")),
    "spec-device-not-there": (
        with_inputs(expert(unet_file("flux")), expert_mode_allocations="cuda:0,1mb;cpu,*"),
        ("cuda:0", "npu:0"),
    ),
    "spec-syntax": (
        with_inputs(expert(unet_file("flux")), expert_mode_allocations="npu:0,1mb,cpu,*"),
        ("expected ';'", "    ^"),
    ),
    "donor-is-compute": (with_inputs(standardized(unet_file("flux")), donor_device="npu:0"), ("npu:0",)),
    "file-not-there": (standardized("gone.safetensors"), ("gone.safetensors",)),
    "file-truncated": (standardized("truncated.safetensors"), ("truncated.safetensors",)),
    "file-foreign": (standardized("foreign.safetensors"), ("foreign.safetensors",)),
    "gguf-truncated": (standardized("truncated.gguf"), ("truncated.gguf",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_at_the_node_and_nothing_is_half_loaded(
    device_server: Server, broken_files: None, case: str
) -> None:
    loader, words = BAD[case]
    before = device_server.state()
    finished = device_server.run(sampling("flux", loader, seed=SEED))
    assert finished.message
    for word in words:
        assert word in finished.message, finished.message
    assert "Traceback" not in finished.message
    if finished.error is not None:
        assert finished.error["node_id"] == "model"
    after = device_server.state()
    assert after["loaded"] == before["loaded"]
    assert after["simulated"]["memory"]["npu:1"]["used"] == 0


def test_a_donor_that_is_too_small_is_reported_with_its_numbers(device_server: Server) -> None:
    loader = with_inputs(expert(unet_file("flux")), expert_mode_allocations="npu:0,1mb;npu:1,*")
    with device_server.capacity(1, 2 << 20):
        finished = device_server.run(sampling("flux", loader, seed=SEED))
    assert finished.error is not None
    assert finished.error["node_id"] == "model"
    assert "npu:1" in finished.message
    assert "MiB" in finished.message
    assert device_server.state()["loaded"] == []


@pytest.mark.parametrize("name", ["flux", "wan", "sd15"])
def test_memory_that_became_tight_is_shared_as_the_host_does(device_server: Server, name: str) -> None:
    """The plan was made with room; then the host streams what it cannot load, and donors keep what they hold."""
    stock = stock_of(device_server, name, unet_file(name), seed=SEED + 1)
    latent_of(device_server, name, expert(unet_file(name)))
    device_server.unload()
    with device_server.capacity(0, TIGHT_BYTES):
        assert torch.equal(latent_of(device_server, name, expert(unet_file(name)), seed=SEED + 1), stock)
        model = placed_model(device_server)
        assert model["loaded_size"] < model["model_size"]
        assert model["weights"]["npu:1"] == model["planned"]["npu:1"]


def test_memory_that_is_tight_from_the_start_is_reported_before_anything_is_loaded(device_server: Server) -> None:
    with device_server.capacity(0, TIGHT_BYTES):
        finished = device_server.run(sampling("flux", expert(unet_file("flux")), seed=SEED))
    assert finished.error is not None
    assert finished.error["node_id"] == "model"
    assert "on npu:0 but 0 bytes may be used" in finished.message
    assert "free memory on npu:0, lower its reserve or use fewer slots" in finished.message
    assert device_server.state()["loaded"] == []


@pytest.fixture
def broken_files(device_server: Server) -> Iterator[None]:
    """Files that are no models: cut off in the weights, something else under a model's name, a cut header."""
    folder = device_server.base / "models" / "diffusion_models"
    broken = {
        "truncated.safetensors": (folder / unet_file("flux")).read_bytes()[:1_000_000],
        "foreign.safetensors": b"<!doctype html><title>404</title>" * 100,
        "truncated.gguf": (folder / GGUF_FILE).read_bytes()[:100_000],
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    yield
    for name in broken:
        (folder / name).unlink()
