"""Small weights in the formats of other packs, written by the server under test, where the packs' own classes are.

The harness copies this file into a folder of packs of the server; it is not part of the pack. What a pack reads its
sizes from is made small; where a pack has only one size, the weights are zeros.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.ops
import folder_paths
import nodes
import torch
from accelerate import init_empty_weights
from aiohttp import web
from safetensors.torch import save_file
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


def module_of(base: str, name: str) -> ModuleType:
    """A module of the pack that has the node `base`."""
    pack = nodes.NODE_CLASS_MAPPINGS[base].__module__.partition(".")[0]
    return importlib.import_module(f"{pack}.{name}")


def save(model: torch.nn.Module, kind: str, dtype: torch.dtype, prefix: str = "", **metadata: str) -> None:
    """Write seeded weights of a model as `tiny.safetensors` among those of a kind."""
    save_file(filled(model, dtype, prefix), _path(kind), metadata=metadata or None)


def filled(model: torch.nn.Module, dtype: torch.dtype, prefix: str = "") -> dict[str, torch.Tensor]:
    """Seeded small weights of a model that may be on the meta device; zeros for a large one."""
    made = torch.Generator().manual_seed(5)
    large = sum(each.numel() for each in model.parameters()) > 20_000_000
    tensors = {}
    for name, tensor in model.state_dict().items():
        drawn = torch.zeros(tensor.shape) if large else torch.randn(tensor.shape, generator=made) * 0.02
        tensors[prefix + name] = drawn.to(dtype if tensor.is_floating_point() else tensor.dtype)
    return tensors


def _path(kind: str) -> str:
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / "tiny.safetensors")


def wan_video() -> None:
    """A model of 30 narrow blocks and, where the version knows it, the small decoder."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        dim=144, ffn_dim=64, num_heads=12, num_layers=30, device="cpu", operations=comfy.ops.disable_weight_init
    )
    save(model, "diffusion_models", torch.float32)
    if "WanVideoTinyVAELoader" not in nodes.NODE_CLASS_MAPPINGS:
        return
    taehv = module_of("WanVideoTinyVAELoader", "taehv").TAEHV

    class Shapes(taehv):  # type: ignore[misc, valid-type]
        def load_state_dict(self, *_arguments: Any, **_more: Any) -> None:
            """Nothing is loaded: the shapes are wanted."""

        def patch_tgrow_layers(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """The weights as they are."""
            return state_dict

    save(Shapes({"decoder.1.weight": torch.empty(256, 16, 3, 3)}), "vae_approx", torch.float32)


def x_flux() -> None:
    """A ControlNet of the pack's class; its table of sizes, which its loader reads, is made small."""
    util = module_of("LoadFluxControlNet", "xflux.src.flux.util")
    spec = util.configs["flux-dev"]
    spec.params = replace(spec.params, hidden_size=128, num_heads=2, axes_dim=[16, 24, 24], context_in_dim=64)
    save(util.ControlNetFlux(spec.params), "xlabs_controlnets", torch.float32)


def florence2() -> None:
    """A folder as the pack's loader wants it, with a processor of a few letters."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizerFast

    model_class = module_of("Florence2ModelLoader", "modeling_florence2").Florence2ForConditionalGeneration
    config_class = module_of("Florence2ModelLoader", "configuration_florence2").Florence2Config
    text = {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 64}
    for side in ("encoder", "decoder"):
        text |= {f"{side}_layers": 1, f"{side}_ffn_dim": 32, f"{side}_attention_heads": 2}
    vision = {
        "dim_embed": [16, 16, 32, 32],
        "num_heads": [2, 2, 2, 2],
        "num_groups": [2, 2, 2, 2],
        "depths": [1, 1, 1, 1],
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 2],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
        "window_size": 4,
        "projection_dim": 32,
        "drop_path_rate": 0.0,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 4},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 16},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        "model_type": "davit",
        "enable_checkpoint": False,
    }
    config = config_class(vision_config=vision, text_config=text, vocab_size=64, projection_dim=32)
    folder = Path(folder_paths.get_folder_paths("LLM")[0]) / "tiny-florence"
    folder.mkdir(parents=True)
    model_class(config).save_pretrained(folder)
    # Saved by a general class, the inner configuration loses the name of its model, which the pack's class wants.
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, "vision_config": vision}))
    words = ["<|startoftext|>", "<|endoftext|>", *(chr(letter) for letter in range(97, 123))]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt"))
    CLIPProcessor(CLIPImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)


def mmaudio() -> None:
    """The smaller of the pack's two sizes."""
    network = module_of("MMAudioModelLoader", "mmaudio.model.networks").MMAudio
    with init_empty_weights():
        model = network(
            latent_dim=40,
            clip_dim=1024,
            sync_dim=768,
            text_dim=1024,
            hidden_dim=448,
            depth=12,
            fused_depth=8,
            num_heads=7,
            latent_seq_len=345,
            clip_seq_len=64,
            sync_seq_len=192,
        )
    save(model, "mmaudio", torch.float16)


def pulid() -> None:
    """The pack's only size, with one pair of layers."""
    tensors = filled(module_of("PulidModelLoader", "encoders").IDEncoder(), torch.float32, "image_proj.")
    tensors |= {f"ip_adapter.0.to_{name}_ip.weight": torch.zeros(8, 2048) for name in "kv"}
    save_file(tensors, _path("pulid"))


def hunyuan() -> None:
    """The pack's only size of a VAE."""
    module = module_of("HyVideoVAELoader", "nodes")
    config = json.loads((Path(module.script_directory) / "configs" / "hy_vae_config.json").read_text())
    with init_empty_weights():
        model = module.AutoencoderKLCausal3D.from_config(config)
    save(model, "vae", torch.bfloat16)


def ltx_video() -> None:
    """A checkpoint whose metadata says how small it is."""
    loader = module_of("LTXVLoader", "loader_node")
    transformer = {
        "_class_name": "Transformer3DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "cross_attention_dim": 32,
        "caption_channels": 64,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "project_to_2d_pos": True,
        "qk_norm": "rms_norm",
        "standardization_norm": "rms_norm",
        "positional_embedding_type": "rope",
        "positional_embedding_theta": 10000.0,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "timestep_scale_multiplier": 1000,
    }
    vae = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "blocks": [["res_x", 1]],
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
    }
    unet = loader.Transformer3DModel.from_config(transformer)
    tensors = filled(unet, torch.float32, "model.diffusion_model.")
    tensors |= filled(loader.CausalVideoAutoencoder.from_config(vae), torch.float32, "vae.")
    save_file(tensors, _path("checkpoints"), metadata={"config": json.dumps({"transformer": transformer, "vae": vae})})


WRITERS: dict[str, Callable[[], None]] = {
    "ComfyUI-WanVideoWrapper": wan_video,
    "x-flux-comfyui": x_flux,
    "ComfyUI-Florence2": florence2,
    "ComfyUI-MMAudio": mmaudio,
    "PuLID_ComfyUI": pulid,
    "ComfyUI-HunyuanVideoWrapper": hunyuan,
    "ComfyUI-LTXVideo": ltx_video,
}


async def write(request: web.Request) -> web.Response:
    """Write the weights for a pack."""
    asked = await request.json()
    WRITERS[asked["pack"]]()
    return web.json_response(asked)


PromptServer.instance.routes.post("/torchspan-packs/weights")(write)
