"""Every loader reaches the host adapter's function for it, with its files found and its inputs in their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, write_model
from nodes_host_testing import Pack, pack

from alloc_spec import parse
from comfy_nodes import host as adapter
from comfy_nodes.host import Checkpoint, Loaded, PlacementRequest
from comfy_nodes.nodes.table._loaders import LOADERS

__all__ = ["comfyui", "host", "pack"]
pytestmark = pytest.mark.host

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
FUNCTIONS = (
    "load_diffusion_model",
    "load_checkpoint",
    "load_diffusers",
    "load_text_encoders",
    "load_vae",
    "load_clip_vision",
    "load_controlnet",
    "load_gguf_diffusion_model",
    "load_gguf_text_encoders",
)
REQUEST = PlacementRequest(compute_device="npu:1")


@pytest.fixture
def calls(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the nodes ask the adapter for, instead of having it done."""
    made: list[Call] = []

    def recorder(name: str) -> Any:
        def record(*given: Any, **named: Any) -> Loaded[Any]:
            made.append((name, given, named))
            several = Checkpoint(model="model", clip="clip", vae="vae")
            return Loaded(value=several if name in ("load_checkpoint", "load_diffusers") else name)

        return record

    for name in FUNCTIONS:
        monkeypatch.setattr(adapter, name, recorder(name), raising=False)
    return made


@pytest.fixture
def files(pack: Pack) -> Iterator[None]:
    """Empty files of the kinds that no other test writes."""
    paths = pack.comfyui.module("folder_paths")
    made = [pack.comfyui.models / kind / "a.safetensors" for kind in ("controlnet", "clip_vision")]
    made.append(pack.comfyui.models / "diffusers" / "sdxl" / "model_index.json")
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for kind in ("controlnet", "clip_vision", "diffusers"):
        paths.add_model_folder_path(kind, str(pack.comfyui.models / kind), is_default=True)
    yield
    for path in made:
        path.unlink()


FLUX = "flux1-dev.safetensors"
GGUF = "flux1-dev-Q8_0.gguf"
CLIP = "clip_l.safetensors"
T5 = "t5-Q8_0.gguf"
CASES: dict[str, tuple[dict[str, Any], str, list[str], dict[str, Any]]] = {
    "UNETLoader": (
        {"unet_name": FLUX, "weight_dtype": "fp8_e5m2"},
        "load_diffusion_model",
        [FLUX],
        {"weight_dtype": "fp8_e5m2"},
    ),
    "VAELoader": ({"vae_name": "pixel_space"}, "load_vae", ["pixel_space"], {}),
    "CLIPLoader": ({"clip_name": CLIP, "type": "wan"}, "load_text_encoders", [CLIP], {"clip_type": "wan"}),
    "DualCLIPLoader": (
        {"clip_name2": CLIP, "clip_name1": "umt5.safetensors", "type": "flux"},
        "load_text_encoders",
        ["umt5.safetensors", CLIP],
        {"clip_type": "flux"},
    ),
    "TripleCLIPLoader": (
        {"clip_name1": CLIP, "clip_name2": "umt5.safetensors", "clip_name3": CLIP},
        "load_text_encoders",
        [CLIP, "umt5.safetensors", CLIP],
        {},
    ),
    "QuadrupleCLIPLoader": (
        {f"clip_name{index}": CLIP for index in range(1, 5)},
        "load_text_encoders",
        [CLIP] * 4,
        {},
    ),
    "CLIPVisionLoader": ({"clip_name": "a.safetensors"}, "load_clip_vision", ["a.safetensors"], {}),
    "CheckpointLoaderSimple": (
        {"ckpt_name": "sd_xl_base_1.0.safetensors"},
        "load_checkpoint",
        ["sd_xl_base_1.0.safetensors"],
        {},
    ),
    "ControlNetLoader": ({"control_net_name": "a.safetensors"}, "load_controlnet", ["a.safetensors"], {"model": None}),
    "DiffControlNetLoader": (
        {"model": "the model", "control_net_name": "a.safetensors"},
        "load_controlnet",
        ["a.safetensors"],
        {"model": "the model"},
    ),
    "DiffusersLoader": ({"model_path": "sdxl"}, "load_diffusers", ["sdxl"], {}),
    "UnetLoaderGGUF": ({"unet_name": GGUF}, "load_gguf_diffusion_model", [GGUF], {}),
    "UnetLoaderGGUFAdvanced": (
        {"unet_name": GGUF, "dequant_dtype": "float16", "patch_dtype": "target", "patch_on_device": True},
        "load_gguf_diffusion_model",
        [GGUF],
        {"dequant_dtype": "float16", "patch_dtype": "target", "patch_on_device": True},
    ),
    "CLIPLoaderGGUF": ({"clip_name": T5, "type": "flux"}, "load_gguf_text_encoders", [T5], {"clip_type": "flux"}),
    "DualCLIPLoaderGGUF": (
        {"clip_name1": CLIP, "clip_name2": T5, "type": "sd3"},
        "load_gguf_text_encoders",
        [CLIP, T5],
        {"clip_type": "sd3"},
    ),
    "TripleCLIPLoaderGGUF": (
        {"clip_name1": CLIP, "clip_name2": CLIP, "clip_name3": T5},
        "load_gguf_text_encoders",
        [CLIP, CLIP, T5],
        {},
    ),
    "QuadrupleCLIPLoaderGGUF": (
        {"clip_name1": CLIP, "clip_name2": CLIP, "clip_name3": T5, "clip_name4": T5},
        "load_gguf_text_encoders",
        [CLIP, CLIP, T5, T5],
        {},
    ),
}


def test_every_loader_has_a_case() -> None:
    assert set(CASES) == set(LOADERS)


@pytest.mark.parametrize("loader", CASES)
@pytest.mark.usefixtures("files")
def test_a_loader_asks_for_its_files_with_its_options(pack: Pack, calls: list[Call], loader: str) -> None:
    values, function, names, options = CASES[loader]
    output = pack.run(f"{loader}MultiGPU", **values, device="npu:1")
    ((called, given, named),) = calls
    assert called == function
    paths = given[0] if isinstance(given[0], list) else [given[0]]
    assert [str(path).removeprefix(str(pack.comfyui.models)).rpartition("/")[2] for path in paths] == names
    assert given[1] == REQUEST
    named.pop("embedding_directory", None)
    assert named == options
    several = function in ("load_checkpoint", "load_diffusers")
    assert output.args == (("model", "clip", "vae") if several else (function,))
    assert output.ui is None


def test_inputs_that_nobody_declared_do_not_reach_the_loader(pack: Pack, calls: list[Call]) -> None:
    pack.run("UNETLoaderDisTorchMultiGPU", unet_name=FLUX, weight_dtype="default", high_precision_loras=True, extra=1)
    ((_, given, named),) = calls
    assert named == {"weight_dtype": "default"}
    assert given[1].allocation == parse("#npu:0;4;cpu")


def test_a_report_is_empty_where_nothing_was_placed(pack: Pack, calls: list[Call]) -> None:
    output = pack.run("UNETLoaderDisTorchMultiGPU", unet_name=FLUX, weight_dtype="default", virtual_ram_gb=0.0)
    assert output.args == ("load_diffusion_model", "")


def test_the_parts_of_a_checkpoint_are_asked_for_one_by_one(pack: Pack, calls: list[Call]) -> None:
    output = pack.run(
        "CheckpointLoaderAdvancedDisTorch2MultiGPU",
        ckpt_name="sd_xl_base_1.0.safetensors",
        unet_compute_device="npu:0",
        unet_virtual_vram_gb=2.0,
        unet_donor_device="npu:1",
        clip_compute_device="npu:2",
        clip_virtual_vram_gb=1.5,
        clip_donor_device="cpu",
        vae_device="npu:3",
        clip_expert_mode_allocations="npu:2,1gb;cpu,*",
        high_precision_loras=True,
    )
    ((_, given, named),) = calls
    assert given[1] == PlacementRequest(compute_device="npu:0", allocation=parse("#npu:0;2;npu:1"), eject_models=True)
    assert named["clip_request"] == PlacementRequest(compute_device="npu:2", allocation=parse("npu:2,1gb;cpu,*"))
    assert named["vae_request"] == PlacementRequest(compute_device="npu:3")
    assert output.args == ("model", "clip", "vae")


def test_the_parts_of_a_checkpoint_on_a_device_each(pack: Pack, calls: list[Call]) -> None:
    devices = {"unet_device": "npu:1", "clip_device": "npu:2", "vae_device": "cpu"}
    pack.run("CheckpointLoaderAdvancedMultiGPU", ckpt_name="sd_xl_base_1.0.safetensors", **devices)
    ((_, given, named),) = calls
    asked = [given[1], named["clip_request"], named["vae_request"]]
    assert asked == [PlacementRequest(compute_device=device) for device in ("npu:1", "npu:2", "cpu")]


def test_a_bad_text_of_one_part_is_refused_before_the_file_is_read(pack: Pack, calls: list[Call]) -> None:
    with pytest.raises(ValueError, match="expected ','"):
        pack.run(
            "CheckpointLoaderAdvancedDisTorch2MultiGPU",
            ckpt_name="sd_xl_base_1.0.safetensors",
            clip_expert_mode_allocations="npu:2=1gb",
        )
    assert calls == []


@pytest.mark.slow
def test_a_real_checkpoint_in_parts(pack: Pack, host: Host) -> None:
    write_model(host, "checkpoint")
    name = "tiny_sd15_checkpoint.safetensors"
    model, clip, vae = pack.run(
        "CheckpointLoaderAdvancedDisTorch2MultiGPU",
        ckpt_name=name,
        unet_compute_device="npu:0",
        unet_virtual_vram_gb=0.02,
        unet_donor_device="npu:3",
        clip_compute_device="npu:1",
        clip_virtual_vram_gb=0.0,
        clip_donor_device="cpu",
        vae_device="npu:2",
    ).args
    assert [str(each) for each in (model.load_device, clip.patcher.load_device, vae.device)] == [
        "npu:0",
        "npu:1",
        "npu:2",
    ]
    stock = host.stock(host.models / "checkpoints" / name)
    assert torch.equal(host.sample(model, "sd15"), host.sample(stock, "sd15"))
    host.free_all()
