"""A machine without an accelerator: workflows that were saved on another one run, or say which devices there are."""

from __future__ import annotations

import pytest
import torch

from comfyui_server import Server
from comfyui_workflows import (
    GGUF_DENSE,
    GGUF_FILE,
    Node,
    distorch2,
    plain,
    sampling,
    standardized,
    stock_unet,
    unet_file,
    with_inputs,
)

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]
FILES = {"flux": (unet_file("flux"), unet_file("flux")), "gguf": (GGUF_FILE, GGUF_DENSE)}


def on_the_cpu(loader: Node) -> Node:
    """The same node with the only device there is in every input that names one."""
    devices = {name: "cpu" for name in loader["inputs"] if "device" in name}
    return with_inputs(loader, **devices)


@pytest.mark.parametrize("way", [plain, standardized, distorch2])
@pytest.mark.parametrize("kind", FILES)
def test_every_way_gives_the_stock_bits_on_the_cpu(cpu_server: Server, kind: str, way: object) -> None:
    file, twin = FILES[kind]
    assert callable(way)
    stock = cpu_server.latent(cpu_server.run(sampling("flux", stock_unet(twin), seed=9)))
    placed = cpu_server.latent(cpu_server.run(sampling("flux", on_the_cpu(way(file)), seed=9)))
    assert torch.equal(placed, stock)


@pytest.mark.parametrize("way", [plain, standardized, distorch2])
def test_a_workflow_of_another_machine_is_reported_which_devices_there_are(cpu_server: Server, way: object) -> None:
    assert callable(way)
    finished = cpu_server.run(sampling("flux", way(unet_file("flux")), seed=9))
    assert "npu:" in finished.message
    assert "cpu" in finished.message
    assert "Traceback" not in finished.message


def test_a_mistake_in_an_allocation_is_shown_with_its_place(cpu_server: Server) -> None:
    loader = with_inputs(on_the_cpu(standardized(unet_file("flux"))), expert_mode_allocations="cuda:0=6gb;cpu,*")
    finished = cpu_server.run(sampling("flux", loader, seed=9))
    assert finished.node_errors, "refused before anything runs"
    assert "expected ',' after the device 'cuda:0'" in finished.message
    assert '- did you mean "cuda:0,6gb;cpu,*"?' in finished.message
