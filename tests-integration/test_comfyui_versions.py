"""The releases of ComfyUI that the pack is tried on, from the oldest on, each a real server on simulated devices.

They are checked out of the ComfyUI that all tests share, where its history reaches back so far.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import get_comfyui
from comfy_nodes.nodes.table._table import TABLE
from comfyui_server import Server, require_comfyui, running_server
from comfyui_workflows import Node, distorch2, expert, plain, sampling, standardized, stock_unet, unet_file
from conftest import DEVICES, PACK, make_base

VERSIONS = ("0.3.64", "0.4.0", "0.12.0", "0.16.0", "0.23.0")
MODEL = "wan"
FILE = unet_file(MODEL)
PACKED, DENSE = "tiny_wan_q8_0.gguf", "tiny_wan_q8_0_dense.safetensors"
LORA = (f"tiny_{MODEL}_lora.safetensors", 1.0)

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=VERSIONS)
def old_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_models: Path
) -> Iterator[Server]:
    """A release on simulated devices, with the pack."""
    work = tmp_path_factory.mktemp(f"comfyui-{request.param}")
    try:
        get_comfyui.get(str(require_comfyui()), work / "ComfyUI", version=request.param)
    except get_comfyui.CheckoutError as error:
        pytest.skip(f"no ComfyUI {request.param}: {error}")
    base = make_base(work / "base", tiny_models)
    for name in ("input", "output", "temp", "user"):
        (base / name).mkdir()
    with running_server(
        base, packs=[PACK], devices=DEVICES, capacity_bytes=8 << 30, comfyui=work / "ComfyUI"
    ) as server:
        yield server
    shutil.rmtree(work / "ComfyUI")


def latent_of(server: Server, loader: Node, lora: tuple[str, float] | None = None) -> torch.Tensor:
    latent = server.latent(server.run(sampling(MODEL, loader, lora=lora)))
    assert server.state()["simulated"]["violations"] == []
    return latent


def test_every_id_is_served(old_server: Server) -> None:
    assert set(TABLE) <= set(old_server.get("/object_info")), old_server.log[-3000:]


def test_every_way_gives_the_stock_bits_and_uses_its_donors(old_server: Server) -> None:
    stock = latent_of(old_server, stock_unet(FILE))
    for way, donors in ((plain, set()), (standardized, {"npu:2"}), (distorch2, {"npu:1"}), (expert, {"npu:1", "cpu"})):
        old_server.free()
        assert torch.equal(latent_of(old_server, way(FILE)), stock), way.__name__
        planned = [entry["planned"] for entry in old_server.state()["loaded"] if entry["planned"]]
        assert {donor for sizes in planned for donor in sizes} == donors, way.__name__


def test_a_lora_gives_the_stock_bits(old_server: Server) -> None:
    old_server.free()
    stock = latent_of(old_server, stock_unet(FILE), LORA)
    for way in (standardized, expert):
        old_server.free()
        assert torch.equal(latent_of(old_server, way(FILE), LORA), stock), way.__name__


def test_a_gguf_file_gives_the_bits_of_its_twin(old_server: Server) -> None:
    old_server.free()
    stock = latent_of(old_server, stock_unet(DENSE))
    for way in (plain, standardized, expert):
        old_server.free()
        assert torch.equal(latent_of(old_server, way(PACKED)), stock), way.__name__


def test_free_empties_the_devices(old_server: Server) -> None:
    latent_of(old_server, expert(FILE))
    old_server.free()
    state = old_server.state()
    assert state["loaded"] == []
    assert {name: entry["used"] for name, entry in state["simulated"]["memory"].items()} == {
        f"npu:{index}": 0 for index in range(DEVICES)
    }
