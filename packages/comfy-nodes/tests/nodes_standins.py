"""A small stand-in for other packs: nodes of their names that say where they ran, in all the ways packs are written.

Imported only in the host's process: like such packs, it asks the host for its devices when it is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import comfy.model_management as management
import torch
from comfy.utils import load_torch_file
from comfy_api.latest import io

__all__ = ["NODE_CLASS_MAPPINGS", "load_torch_file"]
device = management.get_torch_device()
offload_device = management.unet_offload_device()

helpers = ModuleType(f"{__name__}.helpers")
"""A second module of the pack, with a device of its own."""
helpers.device = helpers.DEVICE = device  # type: ignore[attr-defined]
sys.modules[helpers.__name__] = helpers

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_nodes.json").read_text())["nodes"]


def _published(base: str, *ours: str, **hidden: Any) -> dict[str, dict[str, Any]]:
    """Inputs of a published node without those that our pack adds, as its own pack would declare them."""
    groups: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for each in PUBLISHED[f"{base}MultiGPU"]["inputs"]:
        if each["name"] not in ours:
            kind: Any = ["main_device", "offload_device"] if each["type"] == "COMBO" else each["type"]
            groups[each["where"]][each["name"]] = (kind, {"tooltip": f"{each['name']} of {base}"})
    for name, spec in hidden.items():
        groups["optional"][name] = spec
    return groups


class ByGlobal:
    """Keeps its device in a global of its module."""

    FUNCTION = "run"
    BASE = ""
    OURS: tuple[str, ...] = ()
    MORE: ClassVar[dict[str, Any]] = {}
    RETURN_TYPES: tuple[str, ...] = ("RESULT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        return _published(cls.BASE, *cls.OURS, **cls.MORE)

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        where = {"device": str(device), "offload_device": str(offload_device), "inputs": inputs}
        return (where, *[None] * (len(self.RETURN_TYPES) - 1))


class ByHost(ByGlobal):
    """Asks the host for its device when it runs."""

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        asked = management.get_torch_device()
        return ({"device": str(asked), "made_on": str(torch.zeros(1, device=asked).device), "inputs": inputs},)


class Swapping(ByGlobal):
    """Makes settings for a sampler."""

    BASE = "WanVideoBlockSwap"
    RETURN_TYPES = ("BLOCKSWAPARGS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        return {"required": {"blocks_to_swap": ("INT", {"default": 20, "min": 0, "max": 40})}}

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        return (dict(inputs),)


class Sampler(ByGlobal):
    """Samples with a model that swaps its own blocks."""

    BASE = "WanVideoSampler"
    OURS = ("compute_device",)
    RETURN_TYPES = ("LATENT", "LATENT")

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        transformer = inputs["model"].model.diffusion_model
        where = {"device": str(device), "offload_device": str(offload_device)}
        return where, {name: str(getattr(transformer, name)) for name in ("offload_device", "cache_device")}


class Decode(ByGlobal):
    """Looks at its tiles before it runs, and asks another module of its pack."""

    BASE = "WanVideoDecode"
    OURS = ("load_device",)
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def VALIDATE_INPUTS(cls, tile_x: int, tile_stride_x: int) -> bool | str:
        return f"{cls.BASE}: tiles must overlap" if tile_x <= tile_stride_x else True

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        where = {"device": str(device), "offload_device": str(offload_device), "inputs": inputs}
        return ({**where, "elsewhere": str(helpers.device), "untouched": str(helpers.DEVICE)},)


class Failing(ByGlobal):
    """Fails while it runs."""

    BASE = "FantasyTalkingModelLoader"
    OURS = ("device",)
    RETURN_TYPES = ("FANTASYTALKINGMODEL",)

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        raise RuntimeError("the file is broken")


class Broken:
    """Cannot even say what its inputs are."""

    RETURN_TYPES = ("PULID",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        raise KeyError("a folder of models that nobody registered")


class Shown(ByGlobal):
    """Shows something at the node, and wants to know which node it is."""

    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        return {"required": {"name": (["a", "b"],)}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def run(self, **inputs: Any) -> Any:
        return {"ui": {"text": ("shown",)}, "result": ({"device": str(device), "inputs": inputs},)}


class NewKind(io.ComfyNode):  # type: ignore[misc]
    """A node of the new kind."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LTXVLoader",
            inputs=[
                io.Combo.Input("ckpt_name", options=["a.safetensors"]),
                io.Combo.Input("dtype", options=["bfloat16", "float32"], default="bfloat16"),
            ],
            outputs=[io.Model.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> Any:
        return io.NodeOutput({"device": str(device), "inputs": inputs}, None)


def _make(base: str, *ours: str, kind: type = ByGlobal, **more: Any) -> type:
    returns = [name for name in PUBLISHED[f"{base}MultiGPU"]["returns"] if name != "MULTIGPUDEVICE"]
    members = {"BASE": base, "OURS": ours, "MORE": more, "RETURN_TYPES": tuple(returns), "__module__": __name__}
    return type(base, (kind,), members)


def _declare(base: str, output: str, *, kind: type = ByHost, **groups: dict[str, Any]) -> type:
    """A node whose inputs nobody published with a device: as its own pack declares them."""
    members = {
        "BASE": base,
        "INPUT_TYPES": classmethod(lambda cls: {name: dict(inputs) for name, inputs in groups.items()}),
        "RETURN_TYPES": (output,),
        "__module__": __name__,
    }
    return type(base, (kind,), members)


_FILE = (["a.safetensors", "b.safetensors"],)
_PRECISION = (["fp16", "fp32", "bf16"], {"default": "bf16"})
_GPU_OR_CPU = (["gpu", "cpu"], {"default": "gpu"})
_PLACE = (["main_device", "offload_device"], {"default": "offload_device"})

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "LTXVLoader": NewKind,
    "Florence2ModelLoader": _make("Florence2ModelLoader", "device", "offload_device", kind=ByHost),
    "DownloadAndLoadFlorence2Model": _make("DownloadAndLoadFlorence2Model", "device", "offload_device", kind=ByHost),
    "CheckpointLoaderNF4": _make("CheckpointLoaderNF4", "device"),
    "LoadFluxControlNet": Shown,
    "MMAudioModelLoader": _declare(
        "MMAudioModelLoader", "MMAUDIO_MODEL", required={"mmaudio_model": _FILE, "base_precision": _PRECISION}
    ),
    "MMAudioFeatureUtilsLoader": _declare(
        "MMAudioFeatureUtilsLoader",
        "MMAUDIO_FEATUREUTILS",
        required={"vae_model": _FILE, "synchformer_model": _FILE, "clip_model": _FILE},
        optional={
            "bigvgan_vocoder_model": ("VOCODER_MODEL",),
            "mode": (["16k", "44k"], {"default": "44k"}),
            "precision": _PRECISION,
        },
    ),
    "MMAudioSampler": _make("MMAudioSampler", "device", kind=ByHost),
    "PulidModelLoader": Broken,
    "PulidInsightFaceLoader": _make("PulidInsightFaceLoader", "device"),
    "PulidEvaClipLoader": _make("PulidEvaClipLoader", "device"),
    "HyVideoModelLoader": _declare(
        "HyVideoModelLoader",
        "HYVIDEOMODEL",
        required={
            "model": _FILE,
            "base_precision": _PRECISION,
            "quantization": (["disabled", "fp8_e4m3fn"], {"default": "disabled"}),
            "load_device": _PLACE,
        },
        optional={
            "attention_mode": (["sdpa", "comfy"], {"default": "sdpa"}),
            "block_swap_args": ("BLOCKSWAPARGS",),
            "lora": ("HYVIDLORA", {"default": None}),
        },
    ),
    "HyVideoVAELoader": _declare(
        "HyVideoVAELoader",
        "VAE",
        required={"model_name": _FILE},
        optional={"precision": _PRECISION, "compile_args": ("COMPILEARGS",)},
    ),
    "DownloadAndLoadHyVideoTextEncoder": _declare(
        "DownloadAndLoadHyVideoTextEncoder",
        "HYVIDTEXTENCODER",
        required={"llm_model": _FILE, "clip_model": _FILE, "precision": _PRECISION},
        optional={
            "apply_final_norm": ("BOOLEAN", {"default": False}),
            "hidden_state_skip_layer": ("INT", {"default": 2}),
            "load_device": _PLACE,
        },
    ),
    "LoadWanVideoT5TextEncoder": _make("LoadWanVideoT5TextEncoder", "device", load_device=_PLACE),
    "LoadWanVideoClipTextEncoder": _make("LoadWanVideoClipTextEncoder", "device", load_device=_PLACE),
    "WanVideoVAELoader": _make("WanVideoVAELoader", "load_device"),
    "WanVideoTinyVAELoader": _make("WanVideoTinyVAELoader", "load_device"),
    "WanVideoModelLoader": _make("WanVideoModelLoader", "compute_device"),
    "WanVideoBlockSwap": Swapping,
    "WanVideoTextEncode": _make("WanVideoTextEncode", "load_device", device=_GPU_OR_CPU),
    "WanVideoTextEncodeSingle": _make("WanVideoTextEncodeSingle", "load_device", device=_GPU_OR_CPU),
    "WanVideoTextEncodeCached": _make("WanVideoTextEncodeCached", "load_device", device=_GPU_OR_CPU),
    "WanVideoImageToVideoEncode": _make("WanVideoImageToVideoEncode", "load_device"),
    "WanVideoDecode": Decode,
    "WanVideoEncode": _make("WanVideoEncode", "load_device"),
    "WanVideoVACEEncode": _make("WanVideoVACEEncode", "load_device"),
    "WanVideoClipVisionEncode": _make("WanVideoClipVisionEncode", "load_device"),
    "WanVideoSampler": Sampler,
    "WanVideoControlnetLoader": _make("WanVideoControlnetLoader", "device"),
    "WanVideoUni3C_ControlnetLoader": _make("WanVideoUni3C_ControlnetLoader", "device"),
    "FantasyTalkingModelLoader": Failing,
    "Wav2VecModelLoader": _declare(
        "Wav2VecModelLoader",
        "WAV2VECMODEL",
        kind=ByGlobal,
        required={"model": _FILE, "base_precision": _PRECISION, "load_device": _PLACE},
    ),
    "DownloadAndLoadWav2VecModel": _make("DownloadAndLoadWav2VecModel", "device"),
}

REPAIRED = _declare("PulidModelLoader", "PULID", required={"pulid_file": _FILE})
"""What takes the place of `Broken` when its pack can be read again."""
