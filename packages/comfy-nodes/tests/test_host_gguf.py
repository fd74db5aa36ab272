"""GGUF models on the real host: packed wherever they live, equal to their dense twins."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from host_testing import Host, comfyui, host, request, sized
from safetensors.torch import save_file

from comfy_nodes import host as adapter
from gguf_loader import PackedTensor, type_by_name

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host

PACKED, DENSE = "packed", "dense"
SPECS = (None, "npu:0,500kb;npu:1,500kb;cpu,*", "npu:0,0mb;npu:1,*", "#npu:0;4;cpu")


@pytest.mark.parametrize("spec", SPECS)
def test_a_packed_model_samples_what_its_dense_twin_samples(host: Host, spec: str | None) -> None:
    expected = host.sample(host.stock(host.diffusion(DENSE)))
    host.free_all()
    model = adapter.load_gguf_diffusion_model(host.diffusion(PACKED), request(spec)).value
    assert torch.equal(host.sample(model), expected)


def test_weights_stay_packed_and_are_counted_as_packed(sized: Host, host: Host) -> None:
    path = host.diffusion(PACKED)
    loaded = adapter.load_gguf_diffusion_model(path, request("npu:0,500kb;npu:1,*"))
    host.sample(loaded.value)
    plan = loaded.reports[0].plan
    assert plan is not None
    assert plan.size_bytes <= path.stat().st_size
    assert plan.bytes_on("npu:1") <= host.used()[1] <= plan.bytes_on("npu:1") + 512 * 200
    (bank,) = loaded.value.placement.banks
    assert bank.loaded_size() == plan.bytes_on("npu:1") == bank.model_size()


def test_plain_and_packed_files_are_reported_in_the_same_tables(host: Host) -> None:
    def heads(text: str) -> list[str]:
        return [line.strip("= ") for line in text.splitlines() if line.startswith("===")]

    dense = adapter.load_diffusion_model(host.diffusion(DENSE), request(SPECS[1]))
    packed = adapter.load_gguf_diffusion_model(host.diffusion(PACKED), request(SPECS[1]))
    tables = ["Device allocation", "Layer distribution", "Final assignment"]
    assert heads(dense.text) == heads(packed.text) == tables


@pytest.mark.parametrize("dequant_dtype", ["target", "float32", "bfloat16", "float16"])
def test_the_type_of_dequantisation(sized: Host, host: Host, dequant_dtype: str) -> None:
    model = adapter.load_gguf_diffusion_model(host.diffusion(PACKED), request(None), dequant_dtype=dequant_dtype).value
    sampled = host.sample(model)
    host.free_all()
    exact = host.sample(adapter.load_gguf_diffusion_model(host.diffusion(PACKED), request(None)).value)
    if dequant_dtype == "float16":
        assert (sampled - exact).abs().max() < 0.05
    else:
        assert torch.equal(sampled, exact)


FLAGS = ("fp32_unet", "bf16_unet", "fp16_unet", "fp64_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp8_e8m0fnu_unet")


@pytest.mark.parametrize("spec", [None, SPECS[1]])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_start_flag_for_dense_weights_leaves_packed_ones_alone(
    sized: Host, host: Host, flag: str, spec: str | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from comfy_nodes.host.packed import _gguf_dtypes

    _gguf_dtypes._report.cache_clear()
    is_computed = flag in FLAGS[:3]
    if not is_computed:
        expected = host.sample(host.stock(host.diffusion(DENSE)))
    monkeypatch.setattr(host.module("comfy.cli_args").args, flag, True)
    if is_computed:
        expected = host.sample(host.stock(host.diffusion(DENSE)))
    host.free_all()
    for _ in range(2):
        model = adapter.load_gguf_diffusion_model(host.diffusion(PACKED), request(spec)).value
        assert torch.equal(host.sample(model), expected)
    assert sum("stay packed and ignore it" in line for line in caplog.messages) == (not is_computed)


@pytest.mark.parametrize("patch_dtype", ["target", "float32", "bfloat16"])
def test_the_type_of_patches(sized: Host, host: Host, patch_dtype: str) -> None:
    path = host.diffusion(PACKED)
    model = adapter.load_gguf_diffusion_model(path, request(None), patch_dtype=patch_dtype).value
    patched = host.sample(host.lora(model, 1.0))
    host.free_all()
    default = host.sample(host.lora(adapter.load_gguf_diffusion_model(path, request(None)).value, 1.0))
    assert model.lazy_patch_dtype == (torch.bfloat16 if patch_dtype == "target" else getattr(torch, patch_dtype))
    assert (patched - default).abs().max() < 0.05


def test_a_packed_model_survives_eviction(host: Host) -> None:
    model = adapter.load_gguf_diffusion_model(host.diffusion(PACKED), request(SPECS[1])).value
    expected = host.sample(model)
    for device in ("npu:0", "npu:1"):
        host.management.free_memory(1e30, torch.device(device))
        assert torch.equal(host.sample(model), expected)
    host.free_all()
    assert host.used() == [0] * 4
    assert torch.equal(host.sample(model), expected)


def test_a_packed_lookup_table_fetches_rows_only(host: Host) -> None:
    from comfy_nodes.host.packed._gguf_operations import operations

    table = torch.randn(64, 32).numpy()
    blocks = gguf.quants.quantize(table, gguf.GGMLQuantizationType.Q8_0)
    dense = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0))
    packed = PackedTensor(torch.from_numpy(blocks.reshape(-1)), type_by_name("Q8_0"), (64, 32))
    layer = operations().Embedding(64, 32, dtype=torch.float32)
    layer.load_state_dict({"weight": packed})
    layer.weight = torch.nn.Parameter(layer.weight.to("npu:1"), requires_grad=False)
    rows = layer(torch.tensor([[3, 60]], device="npu:0"), out_dtype=torch.float32)
    assert rows.device == torch.device("npu:0")
    assert torch.equal(rows.cpu(), dense[[3, 60]][None])


def test_a_missing_weight_is_reported_as_missing(host: Host) -> None:
    from comfy_nodes.host.packed._gguf_operations import operations

    layer = operations().Linear(4, 4, dtype=torch.float32)
    missing, unexpected = layer.load_state_dict({"weight": torch.eye(4)}, strict=False)
    assert (missing, unexpected) == (["bias"], [])
    assert torch.equal(layer.weight, torch.eye(4))


def test_a_weight_of_another_shape_is_refused(host: Host) -> None:
    from comfy_nodes.host.packed._gguf_operations import operations

    with pytest.raises(RuntimeError, match=r"weight is \[4, 5\] in the file, \[4, 4\] here"):
        operations().Linear(4, 4, bias=False, dtype=torch.float32).load_state_dict({"weight": torch.zeros(4, 5)})


def test_the_layout_refuses_to_quantise(sized: Host, host: Host) -> None:
    from comfy_nodes.host.packed import _gguf_layout

    with pytest.raises(TypeError, match="keep them dense"):
        _gguf_layout.GgufLayout.quantize(torch.zeros(2, 2))


def test_a_text_encoder_may_not_mix_two_ways_of_quantisation(host: Host) -> None:
    path = host.models / "text_encoders" / "scaled.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"a.weight": torch.zeros(2, 2), "scaled_fp8": torch.zeros(2)}, path)
    with pytest.raises(adapter.ModelFileError, match="quantised in another way"):
        adapter.load_gguf_text_encoders([path, path], request(None))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [None, "npu:0,20mb;npu:1,20mb;cpu,*"])
def test_a_packed_text_encoder_is_nearer_to_its_exact_weights_than_their_float16_twin(
    host: Host, spec: str | None
) -> None:
    packed, dense = _text_encoder_twins(host)
    load = host.module("comfy.sd").load_clip
    options = {"load_device": torch.device("npu:0"), "offload_device": torch.device("cpu")}
    exact_clip = load([str(dense)], model_options={**options, "dtype": torch.float32})
    tokens = exact_clip.tokenize("a cat")
    exact = exact_clip.encode_from_tokens(tokens)
    rounded = load([str(dense)], model_options={**options, "dtype": torch.float16}).encode_from_tokens(tokens)
    host.free_all()
    clip = adapter.load_gguf_text_encoders([packed], request(spec)).value
    ours = clip.encode_from_tokens(tokens)
    assert (ours - exact).abs().max() < (rounded - exact).abs().max()
    assert sum(host.used()) < 0.6 * 2 * sum(parameter.numel() for parameter in clip.cond_stage_model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc"])
def test_a_start_flag_for_dense_encoders_leaves_packed_ones_alone(
    host: Host, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = _text_encoder_twins(host)

    def encoded() -> torch.Tensor:
        clip = adapter.load_gguf_text_encoders([packed], request(None)).value
        return torch.as_tensor(clip.encode_from_tokens(clip.tokenize("a cat")))

    expected = encoded()
    host.free_all()
    monkeypatch.setattr(host.module("comfy.cli_args").args, flag, True)
    assert torch.equal(encoded(), expected)


def _text_encoder_twins(host: Host) -> tuple[Path, Path]:
    """CLIP-L as GGUF with the names of the original, and the numbers that its blocks stand for."""
    folder = host.models / "text_encoders"
    folder.mkdir(exist_ok=True)
    packed, dense = folder / "clip_l_q8_0.gguf", folder / "clip_l_dense.safetensors"
    if packed.is_file():
        return packed, dense
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(packed, "clip")
    numbers = {}
    for name, tensor in importlib.import_module("comfyui_checkpoints").text_encoder_weights().items():
        array = tensor.float().numpy()
        if array.ndim == 2 and "position" not in name:
            blocks = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            array = gguf.quants.dequantize(blocks, kind).reshape(array.shape)
        else:
            writer.add_tensor(name, array)
        numbers[name] = torch.from_numpy(array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(numbers, dense)
    return packed, dense
