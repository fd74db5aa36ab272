"""What cannot be placed is refused in words, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from host_testing import CAPACITY_BYTES, Host, comfyui, host, request, sized
from safetensors.torch import save_file

import alloc_spec
import simdev
from comfy_nodes import host as adapter
from device_placement import BudgetTooSmallError

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host

BF16 = "bfloat16"


@pytest.fixture(autouse=True)
def nothing_is_loaded(host: Host) -> None:
    assert host.management.current_loaded_models == []


def test_a_device_of_another_machine(host: Host) -> None:
    with pytest.raises(
        adapter.UnknownDeviceError, match=r"'cuda:0' is not on this machine.*npu:0, npu:1.*cpu"
    ) as error:
        adapter.load_diffusion_model(host.diffusion(BF16), request("cuda:0,1mb;cpu,*", "cuda:0"))
    assert error.value.known == ("npu:0", "npu:1", "npu:2", "npu:3", "cpu")


@pytest.mark.parametrize("spec", ["npu:0,1mb;npu:7,*", "npu:0,1mb;cuda,*"])
def test_a_donor_of_another_machine(host: Host, spec: str) -> None:
    with pytest.raises(adapter.UnknownDeviceError):
        adapter.load_diffusion_model(host.diffusion(BF16), request(spec))


def test_a_compute_device_that_contradicts_the_allocation(host: Host) -> None:
    with pytest.raises(alloc_spec.ComputeDeviceError):
        adapter.load_diffusion_model(host.diffusion(BF16), request("#npu:1;1;cpu", "npu:0"))


def test_a_donor_that_computes_cannot_be_written() -> None:
    with pytest.raises(alloc_spec.AllocSpecError, match="cpu"):
        alloc_spec.from_controls(compute_device="cpu", virtual_ram_gb=1, donor_device="cpu")


def test_a_donor_that_is_too_small(host: Host) -> None:
    simdev.set_capacity(1, int(host.management.minimum_inference_memory()) + (1 << 20))
    with pytest.raises((alloc_spec.NoRoomError, BudgetTooSmallError), match="npu:1"):
        adapter.load_diffusion_model(host.diffusion(BF16), request("npu:0,0mb;npu:1,3mb;cpu,*"))
    simdev.set_capacity(1, CAPACITY_BYTES)


def test_a_compute_device_that_is_too_small(host: Host) -> None:
    simdev.set_capacity(0, int(host.management.minimum_inference_memory()) + (1 << 20))
    with pytest.raises((alloc_spec.NoRoomError, BudgetTooSmallError), match="npu:0"):
        adapter.load_diffusion_model(host.diffusion(BF16), request("npu:0,3mb;cpu,*"))
    simdev.set_capacity(0, CAPACITY_BYTES)


@pytest.fixture
def no_weights_are_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal comes from the header; whoever reads the weights fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(host.module("comfy.utils"), "load_torch_file", refuse)


SIZES = {"default": 2, "fp8_e4m3fn": 1, "fp8_e4m3fn_fast": 1, "fp8_e5m2": 1}


@pytest.mark.usefixtures("sized", "no_weights_are_read")
@pytest.mark.parametrize("weight_dtype", SIZES)
def test_a_plan_that_does_not_fit_is_refused_before_the_weights_are_read(host: Host, weight_dtype: str) -> None:
    loaded_bytes = host.diffusion(BF16).stat().st_size // 2 * SIZES[weight_dtype]
    room = int(host.management.minimum_inference_memory())
    for device, spec in ((1, "npu:0,0mb;npu:1,*"), (0, "npu:0,*;cpu,0mb")):
        simdev.set_capacity(device, room + loaded_bytes * 9 // 10)
        with pytest.raises((alloc_spec.NoRoomError, BudgetTooSmallError), match=f"npu:{device}"):
            adapter.load_diffusion_model(host.diffusion(BF16), request(spec), weight_dtype=weight_dtype)
        simdev.set_capacity(device, CAPACITY_BYTES)


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
@pytest.mark.parametrize("kind", ["plain", BF16])
def test_what_fits_in_the_type_that_is_asked_for_is_not_refused(host: Host, weight_dtype: str, kind: str) -> None:
    path = host.diffusion(kind)
    loaded_bytes = host.diffusion(BF16).stat().st_size // 2
    room = int(host.management.minimum_inference_memory())
    simdev.set_capacity(1, room + loaded_bytes * 12 // 10)
    loaded = adapter.load_diffusion_model(path, request("npu:0,0mb;npu:1,*"), weight_dtype=weight_dtype)
    assert host.sample(loaded.value).isfinite().all()
    simdev.set_capacity(1, CAPACITY_BYTES)


@pytest.mark.usefixtures("sized")
def test_a_host_that_is_told_to_load_everything_in_8_bits_is_not_refused_what_fits_in_them(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.module("comfy.cli_args").args, "fp8_e4m3fn_unet", True)
    path = host.diffusion(BF16)
    room = int(host.management.minimum_inference_memory())
    simdev.set_capacity(1, room + path.stat().st_size * 6 // 10)
    model = adapter.load_diffusion_model(path, request("npu:0,0mb;npu:1,*")).value
    assert model.model.get_dtype() == torch.float8_e4m3fn
    simdev.set_capacity(1, CAPACITY_BYTES)


def test_a_file_that_is_not_there(host: Host) -> None:
    with pytest.raises(adapter.ModelFileError, match=r"nothing\.safetensors"):
        adapter.load_diffusion_model(host.models / "nothing.safetensors", request("cpu,*"))


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off(host: Host, tmp_path: Path, part: float) -> None:
    for name, load in (
        (BF16, adapter.load_diffusion_model),
        ("packed", adapter.load_gguf_diffusion_model),
    ):
        whole = host.diffusion(name).read_bytes()
        path = tmp_path / host.diffusion(name).name
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(adapter.ModelFileError, match=path.name):
            load(path, request("npu:0,1mb;cpu,*"))


def test_a_file_of_something_else(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "something.safetensors"
    save_file({"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros(4, 4)}, path)
    for spec in (None, "npu:0,1kb;cpu,*"):
        with pytest.raises((adapter.HostError, alloc_spec.AllocSpecError, BudgetTooSmallError)):
            adapter.load_diffusion_model(path, request(spec))
    with pytest.raises(adapter.ModelFileError, match="architecture"):
        adapter.load_diffusion_model(path, request(None))


@pytest.mark.parametrize("spec", [None, "npu:0,1kb;cpu,*"])
def test_a_lora_in_the_place_of_a_model(host: Host, spec: str | None) -> None:
    path = host.models / "loras" / f"tiny_{host.name}_lora.safetensors"
    for load in (adapter.load_diffusion_model, adapter.load_checkpoint, adapter.load_controlnet):
        with pytest.raises(adapter.ModelFileError, match="it is a LoRA, not a model") as error:
            load(path, request(spec))
        assert str(error.value).count(str(path)) == 1
    with pytest.raises(adapter.ModelFileError, match="it is a LoRA, not a model"):
        adapter.load_text_encoders([path], request(spec))


def gguf_file(path: Path, kind: str, names: Sequence[str], **metadata: int) -> Path:
    writer = gguf.GGUFWriter(path, "flux")
    if kind:
        writer.add_string("general.type", kind)
    for key, value in metadata.items():
        writer.add_uint16(key.replace("__", "."), value)
    for name in names:
        writer.add_tensor(name, np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("spec", [None, "npu:0,1kb;cpu,*"])
def test_what_a_quantised_file_is_instead_is_named_once_with_one_remedy(
    host: Host, tmp_path: Path, spec: str | None
) -> None:
    lora = [f"double_blocks.{i}.img_attn.qkv.weight.lora_{part}" for i in range(2) for part in "ab"]
    vision = ["v.blk.0.attn_q.weight", "mm.0.weight"]
    files = (
        (gguf_file(tmp_path / "lora.gguf", "adapter", lora), "LoRA"),
        (gguf_file(tmp_path / "mmproj.gguf", "mmproj", vision), "vision part"),
        (gguf_file(tmp_path / "1-of-2.gguf", "", lora[:1], split__no=0, split__count=2), "part"),
    )

    def encoder(path: Path, asked: adapter.PlacementRequest) -> object:
        return adapter.load_gguf_text_encoders([path], asked)

    for path, named in files:
        for load in (adapter.load_gguf_diffusion_model, encoder):
            with pytest.raises(adapter.ModelFileError, match=named) as error:
                load(path, request(spec))
            said = str(error.value)
            assert said.count(path.name) == 1
            assert said.count(";") <= 1
            assert "plain node" not in said


@pytest.mark.parametrize("spec", [None, "npu:0,1kb;cpu,*"])
def test_a_diffusion_model_in_the_place_of_a_text_encoder(host: Host, spec: str | None) -> None:
    for load in (adapter.load_text_encoders, adapter.load_gguf_text_encoders):
        with pytest.raises(adapter.ModelFileError, match="a diffusion model, not a text encoder"):
            load([host.diffusion()], request(spec))
    with pytest.raises(adapter.ModelFileError, match="a diffusion model, not a text encoder"):
        adapter.load_gguf_text_encoders([host.diffusion("packed")], request(spec))


def test_a_text_encoder_in_the_place_of_a_quantised_model(host: Host) -> None:
    with pytest.raises(adapter.ModelFileError, match="type"):
        adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(None), dequant_dtype="int3")


def test_after_a_refusal_the_same_file_loads(host: Host) -> None:
    with pytest.raises(adapter.UnknownDeviceError):
        adapter.load_diffusion_model(host.diffusion(BF16), request("npu:9,*"))
    model = adapter.load_diffusion_model(host.diffusion(BF16), request("npu:0,1mb;cpu,*")).value
    assert host.sample(model).isfinite().all()
