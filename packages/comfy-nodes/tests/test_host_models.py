"""Diffusion models on the real host: the numbers of the stock loader, the bytes of the plan."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized, write_model

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host

SPECS = (
    "npu:0,1mb;npu:1,1mb;cpu,*",
    "npu:0,0mb;npu:1,*",
    "cpu,*",
    "npu:0,500kb;npu:1,25%;npu:2,1mb;npu:3,*",
    "#npu:0;0.001;npu:2",
    "#npu:0;4;cpu",
)
MODEL_OWN_BYTES = 40_000
"""The noise schedule, which belongs to the model but not to the network that is placed."""


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["plain", "bfloat16"])
def test_a_placed_model_samples_what_the_stock_loader_samples(host: Host, name: str, spec: str) -> None:
    expected = host.sample(host.stock(host.diffusion(name)))
    host.free_all()
    model = adapter.load_diffusion_model(host.diffusion(name), request(spec)).value
    assert torch.equal(host.sample(model), expected)
    assert torch.equal(host.sample(model), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_every_device_holds_what_the_plan_says(sized: Host, host: Host, spec: str) -> None:
    loaded = adapter.load_diffusion_model(host.diffusion(), request(spec))
    host.management.load_models_gpu([loaded.value])
    plan = loaded.reports[0].plan
    assert plan is not None
    compute_bytes = plan.bytes_on("npu:0") + MODEL_OWN_BYTES
    assert loaded.value.loaded_size() == compute_bytes == loaded.value.share_bytes()
    banks = {str(bank.load_device): bank.loaded_size() for bank in loaded.value.placement.banks}
    assert banks == {name: plan.bytes_on(name) for name in plan.donors if name != "cpu" and plan.bytes_on(name)}
    for index, used in enumerate(host.used()):
        planned = compute_bytes if index == 0 else plan.bytes_on(f"npu:{index}")
        assert planned <= used <= planned + 512 * 200  # each tensor is rounded up to 512


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_the_core_loaders_types_are_honoured(sized: Host, host: Host, weight_dtype: str) -> None:
    path = host.diffusion()
    options: dict[str, Any] = {"dtype": torch.float8_e5m2 if weight_dtype == "fp8_e5m2" else torch.float8_e4m3fn}
    fast: dict[str, Any] = {"fp8_optimizations": True} if weight_dtype.endswith("fast") else {}
    expected = host.sample(host.stock(path, **options, **fast))
    model = adapter.load_diffusion_model(
        path, request("npu:0,600kb;npu:1,600kb;cpu,*"), weight_dtype=weight_dtype
    ).value
    assert model.model.get_dtype() == options["dtype"]
    assert torch.equal(host.sample(model), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "ltxv", "sd15"])
def test_other_architectures_sample_the_same(host: Host, name: str) -> None:
    write_model(host, name)
    path = host.models / "diffusion_models" / f"tiny_{name}.safetensors"
    expected = host.sample(host.stock(path), name)
    host.free_all()
    for spec in ("npu:0,30%;npu:1,30%;cpu,40%", "npu:1,50%;npu:2,50%"):
        model = adapter.load_diffusion_model(path, request(spec)).value
        assert torch.equal(host.sample(model, name), expected)
        host.free_all()


@pytest.mark.parametrize("device", ["npu:2", "cpu"])
def test_a_plain_load_goes_to_the_device_that_is_asked_for(host: Host, device: str) -> None:
    path = host.diffusion()
    loaded = adapter.load_diffusion_model(path, request(None, device))
    expected = host.sample(host.stock(path, device))
    assert torch.equal(host.sample(loaded.value), expected)
    assert loaded.value.load_device == torch.device(device)
    assert loaded.reports[0].plan is None


def test_without_a_device_the_host_chooses(host: Host) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(None, None)).value  # type: ignore[arg-type]
    assert model.load_device.type == "npu"


def test_a_donor_may_serve_a_model_that_computes_on_the_cpu(sized: Host, host: Host) -> None:
    path = host.diffusion()
    expected = host.sample(host.stock(path, "cpu"))
    model = adapter.load_diffusion_model(path, request("npu:1,1mb;cpu,*", "cpu")).value
    assert torch.equal(host.sample(model), expected)
    assert host.used()[1] > 2**20


def test_loading_and_freeing_twenty_times_leaks_nothing(sized: Host, host: Host) -> None:
    path = host.diffusion()
    known: set[int] = set()
    for turn in range(20):
        model = adapter.load_diffusion_model(path, request("npu:0,1mb;npu:1,1mb;cpu,*")).value
        host.management.load_models_gpu([model])
        assert sum(host.used()) > 1_900_000
        del model
        gc.collect()
        host.management.cleanup_models()
        assert host.management.current_loaded_models == []
        assert sum(host.used()) == 0
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        known.add(tensors) if turn > 2 else None
    assert len(known) == 1
