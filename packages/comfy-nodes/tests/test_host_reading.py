"""Every node of the host that reads weights, on every way of quantisation: the file of one device, or a refusal."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request
from safetensors.torch import load_file, save_file

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host"]
pytestmark = pytest.mark.host

SPLIT = "npu:0,500kb;npu:1,200kb;cpu,*"
KINDS = ("gguf", "float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")


@pytest.fixture(autouse=True)
def _no_tables_stay_on_devices(host: Host) -> Iterator[None]:
    """The host's library keeps a lookup table of nvfp4 on each device for good."""
    yield
    kept = sys.modules.get("comfy_kitchen.backends.eager.quantization")
    getattr(kept, "E2M1_LUT_CACHE", {}).clear()


def quantised(host: Host, kind: str) -> Path:
    """The tiny model with the matrices of its blocks quantised by the host, written once."""
    path = host.models / "diffusion_models" / f"tiny_{host.name}_{kind}.safetensors"
    if path.is_file():
        return path
    try:
        quantisation = host.module("comfy.quant_ops")
        layout = quantisation.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    except (ImportError, KeyError):
        pytest.skip(f"this host does not know {kind}")
    weights = {}
    for key, tensor in importlib.import_module("comfyui_checkpoints").diffusion_weights(host.name).items():
        dense = tensor.to(torch.bfloat16)
        if dense.ndim != 2 or "block" not in key or not key.endswith(".weight"):
            weights[key] = dense
            continue
        options = {"scale": "recalculate"} if kind.startswith("float8") else {}
        stored = quantisation.QuantizedTensor.from_float(dense, layout, **options).state_dict(key)
        whole = (torch.uint8, torch.int8)
        weights |= {
            name: part.contiguous() if part.dtype in whole or part.dtype.itemsize > 1 else part.view(torch.uint8)
            for name, part in stored.items()
        }
        weights[f"{key.removesuffix('weight')}comfy_quant"] = torch.tensor(
            list(json.dumps({"format": kind}).encode()), dtype=torch.uint8
        )
    save_file(weights, path)
    return path


def stock(host: Host, kind: str) -> Any:
    return host.stock(host.diffusion("dense") if kind == "gguf" else quantised(host, kind))


def placed(host: Host, kind: str, spec: str | None = SPLIT) -> Any:
    if kind == "gguf":
        return adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(spec)).value
    return adapter.load_diffusion_model(quantised(host, kind), request(spec)).value


Reading = Callable[[Host, Any, Path], dict[str, torch.Tensor]]


def _saved(host: Host, model: Any, path: Path) -> dict[str, torch.Tensor]:
    host.sample(model)
    host.module("comfy.sd").save_checkpoint(str(path), model)
    return load_file(path)


def _saved_patched(host: Host, model: Any, path: Path) -> dict[str, torch.Tensor]:
    return _saved(host, host.lora(model, 0.7), path)


def _saved_by_a_merge(host: Host, model: Any, path: Path) -> dict[str, torch.Tensor]:
    other = host.stock(host.diffusion("bfloat16"))
    merged = host.module("comfy_extras.nodes_model_merging").ModelMergeSimple().merge(other, model, 0.4)[0]
    return _saved(host, merged, path)


def _extracted(host: Host, difference: Any, kind: str) -> dict[str, torch.Tensor]:
    extraction = host.module("comfy_extras.nodes_lora_extract")
    found: dict[str, torch.Tensor] = {}
    prefix = "diffusion_model."
    extraction.calc_lora_model(difference, 4, prefix, prefix, found, getattr(extraction.LORAType, kind), bias_diff=True)
    return found


def _extracted_from_it(host: Host, model: Any, path: Path) -> dict[str, torch.Tensor]:
    subtract = host.module("comfy_extras.nodes_model_merging").ModelSubtract().merge
    return _extracted(host, subtract(host.lora(model, 0.7), model, 1.0)[0], "STANDARD")


def _extracted_against_it(host: Host, model: Any, path: Path) -> dict[str, torch.Tensor]:
    subtract = host.module("comfy_extras.nodes_model_merging").ModelSubtract().merge
    other = host.stock(host.diffusion("bfloat16"))
    return _extracted(host, subtract(other, host.lora(model, 0.7), 1.0)[0], "FULL_DIFF")


READINGS = (_saved, _saved_patched, _saved_by_a_merge, _extracted_from_it, _extracted_against_it)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READINGS)
def test_what_reads_weights_gives_the_file_of_one_device_or_a_refusal(
    host: Host, kind: str, read: Reading, tmp_path: Path
) -> None:
    try:
        expected = read(host, stock(host, kind), tmp_path / "stock.safetensors")
    except AttributeError:
        expected = None  # the host itself does not read the numbers of this way of quantisation
    host.free_all()
    path = tmp_path / "placed.safetensors"
    try:
        found = read(host, placed(host, kind), path)
    except adapter.HostError as error:
        assert expected is None or (kind == "gguf" and "GGUF blocks cannot be saved" in str(error))
        assert not path.exists()
        return
    assert expected is not None
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key


@pytest.mark.parametrize("spec", [None, "npu:0,0mb;npu:1,*", "cpu,*"])
def test_a_lora_extracted_from_a_packed_model_is_that_of_its_dense_twin(
    host: Host, spec: str | None, tmp_path: Path
) -> None:
    expected = _extracted_against_it(host, stock(host, "gguf"), tmp_path)
    host.free_all()
    found = _extracted_against_it(host, placed(host, "gguf", spec), tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_quantised_model_with_a_hook_is_refused_by_name(host: Host, kind: str) -> None:
    weights = host.module("comfy.utils").load_torch_file(
        str(host.models / "loras" / f"tiny_{host.name}_lora.safetensors")
    )
    hooks = host.module("comfy.hooks").create_hook_lora(weights, 1.0, 0.0)
    with pytest.raises(adapter.HostError, match="changed by hooks"):
        host.sample(placed(host, kind), hooks=hooks)


def trained(host: Host, model: Any, *, bypass: bool = False) -> dict[str, torch.Tensor]:
    """A LoRA that the host's node trains for one step, seeded."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(1, 7, 1024, generator=generator)
    inputs = {
        "model": model,
        "latents": {"samples": torch.randn(1, 16, 8, 8, generator=generator)},
        "positive": [[context, {"pooled_output": torch.zeros(1, 32), "guidance": 3.5}]],
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "steps": 1,
        "learning_rate": 0.1,
        "rank": 4,
        "optimizer": "SGD",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "bf16",
        "lora_dtype": "bf16",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": bypass,
    }
    node = host.module("comfy_extras.nodes_train").TrainLoraNode
    found: dict[str, torch.Tensor] = node.execute(**{name: [value] for name, value in inputs.items()}).result[0]
    return found


@pytest.mark.parametrize("kind", ["gguf", "int8_tensorwise"])
def test_a_lora_trained_on_a_placed_model_is_that_of_one_device(host: Host, kind: str) -> None:
    if host.name != "flux":
        pytest.skip("this host trains no LoRA on the tiny model")
    expected = trained(host, stock(host, kind))
    host.free_all()
    found = trained(host, placed(host, kind))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_bypass_away_from_the_default_device_is_refused(host: Host) -> None:
    if host.name != "flux":
        pytest.skip("this host has no bypass mode")
    weights = host.module("comfy.utils").load_torch_file(
        str(host.models / "loras" / f"tiny_{host.name}_lora.safetensors")
    )
    load = host.module("comfy.sd").load_bypass_lora_for_models
    expected = host.sample(load(host.stock(host.diffusion("dense")), None, weights, 0.7, 0)[0])
    host.free_all()
    at_home = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(SPLIT)).value
    assert torch.equal(host.sample(load(at_home, None, weights, 0.7, 0)[0]), expected)
    away = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(None, "npu:1")).value
    for run in (
        lambda: host.sample(load(away, None, weights, 0.7, 0)[0]),
        lambda: trained(host, away, bypass=True),
    ):
        with pytest.raises(adapter.HostError, match=r"bypass mode works on npu:0 alone.*choose npu:0"):
            run()
