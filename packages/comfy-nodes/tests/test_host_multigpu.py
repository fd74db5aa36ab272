"""The host's own multi-device nodes on placed models: they coexist, and give what they give on stock models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host", "sized"]
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("sized")]

SPEC = "npu:0,1mb;npu:1,1mb;npu:2,1mb;cpu,*"


@pytest.fixture
def nodes(host: Host) -> Any:
    return pytest.importorskip("comfy_extras.nodes_multigpu", reason="this host has no multi-device nodes")


def placed(host: Host) -> Any:
    return adapter.load_diffusion_model(host.diffusion(), request(SPEC)).value


def test_a_deep_clone_computes_elsewhere_with_donors_of_its_own(host: Host, nodes: Any) -> None:
    model = placed(host)
    expected = host.sample(model)
    clone = model.deepclone_multigpu(new_load_device=torch.device("npu:1"))
    assert clone.model is not model.model
    assert clone.placement.compute == torch.device("npu:1")
    assert {str(home) for home in clone.placement.homes.values()} == {"npu:2", "cpu"}
    assert torch.equal(host.sample(clone), expected)
    assert torch.equal(host.sample(model), expected)


def test_a_deep_clone_keeps_its_patches(host: Host, nodes: Any) -> None:
    model = host.lora(placed(host), 0.8)
    expected = host.sample(model)
    clone = model.deepclone_multigpu(new_load_device=torch.device("npu:3"))
    assert torch.equal(host.sample(clone), expected)


def test_the_split_of_cfg_gives_what_it_gives_on_a_stock_model(host: Host, nodes: Any) -> None:
    def split(model: Any) -> torch.Tensor:
        return host.sample(nodes.MultiGPUCFGSplitNode.execute(model, 2).result[0], cfg=3.0)

    expected = split(host.stock(host.diffusion()))
    host.free_all()
    assert torch.equal(split(placed(host)), expected)


@pytest.mark.parametrize("choice", ["gpu:1", "gpu:2", "cpu", "default"])
def test_select_model_device_gives_what_it_gives_on_a_stock_model(host: Host, nodes: Any, choice: str) -> None:
    def selected(model: Any) -> torch.Tensor:
        return host.sample(nodes.SelectModelDeviceNode.execute(model, choice).result[0])

    expected = selected(host.stock(host.diffusion()))
    host.free_all()
    model = placed(host)
    assert torch.equal(selected(model), expected)
    assert torch.equal(host.sample(model), host.sample(host.stock(host.diffusion())))


def test_a_packed_model_is_cloned_packed(host: Host, nodes: Any) -> None:
    path = host.diffusion("packed")
    model = adapter.load_gguf_diffusion_model(path, request("npu:0,500kb;npu:1,500kb;cpu,*")).value
    expected = host.sample(model)
    clone = model.deepclone_multigpu(new_load_device=torch.device("npu:2"))
    assert torch.equal(host.sample(clone), expected)
    assert host.used()[2] < 600_000
