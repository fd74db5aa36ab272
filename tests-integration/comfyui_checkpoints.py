"""Tiny checkpoints that ComfyUI's own detection accepts, with seeded random weights, and what it takes to sample them.

Names and shapes come from the model classes of the ComfyUI checkout itself, so nothing here repeats them. Run
`python tests-integration/comfyui_checkpoints.py FOLDER` to write all into the subfolders of a `models` folder; tests
do that in a process of its own, because importing ComfyUI decides about devices for the whole process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch

import comfyui_side_models as side_models
from comfyui_tiny_models import CLIP_WIDTH, SEED, TINY_MODELS, Weights, diffusion_weights, random_tensor, save
from discovery_oracles import import_comfy

LORA_RANK = 4
GGUF_TYPE = gguf.GGMLQuantizationType.Q8_0
CLIP_LAYERS = 12
CHECKPOINT = "tiny_sd15_checkpoint.safetensors"
TEXT_ENCODER = "tiny_clip_l.safetensors"
VAE = "tiny_vae.safetensors"


def write_diffusion_model(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write `diffusion_models/tiny_NAME[_DTYPE].safetensors` below `folder`."""
    suffix = "" if dtype is torch.float32 else f"_{str(dtype).removeprefix('torch.')}"
    weights = {key: value.to(dtype) for key, value in diffusion_weights(name).items()}
    return save(weights, folder / "diffusion_models" / f"tiny_{name}{suffix}.safetensors", TINY_MODELS[name].metadata)


def write_gguf_twin(folder: Path, name: str) -> tuple[Path, Path]:
    """Write `diffusion_models/tiny_NAME_q8_0.gguf` and its dequantised twin `tiny_NAME_q8_0_dense.safetensors`.

    As converters do, matrices whose rows are whole blocks are quantised, the rest is kept in float32. The twin holds
    the numbers that the packed weights stand for, computed by the gguf package: a stock node runs what ours must equal.
    """
    target = folder / "diffusion_models" / f"tiny_{name}_q8_0.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    block_size, _ = gguf.GGML_QUANT_SIZES[GGUF_TYPE]
    writer = gguf.GGUFWriter(target, name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    dense: Weights = {}
    for key, tensor in diffusion_weights(name).items():
        array = tensor.numpy()
        if tensor.ndim == 2 and tensor.shape[1] % block_size == 0:
            packed = gguf.quants.quantize(array, GGUF_TYPE)
            writer.add_tensor(key, packed, raw_dtype=GGUF_TYPE)
            array = gguf.quants.dequantize(packed, GGUF_TYPE).reshape(tensor.shape)
        else:
            writer.add_tensor(key, array)
        dense[key] = torch.from_numpy(np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    twin = target.with_name(f"tiny_{name}_q8_0_dense.safetensors")
    return target, save(dense, twin, TINY_MODELS[name].metadata)


def write_lora(folder: Path, name: str) -> Path:
    """Write `loras/tiny_NAME_lora.safetensors`: a low-rank change of every linear layer inside the blocks."""
    low_rank: Weights = {}
    for key, tensor in diffusion_weights(name).items():
        if tensor.ndim == 2 and key.endswith(".weight") and "block" in key:
            layer = f"diffusion_model.{key.removesuffix('.weight')}"
            rows, columns = tensor.shape
            low_rank[f"{layer}.lora_up.weight"] = random_tensor(f"{layer}.up", (rows, LORA_RANK), SEED)
            low_rank[f"{layer}.lora_down.weight"] = random_tensor(f"{layer}.down", (LORA_RANK, columns), SEED)
            low_rank[f"{layer}.alpha"] = torch.tensor(float(LORA_RANK))
    return save(low_rank, folder / "loras" / f"tiny_{name}_lora.safetensors")


def vae_weights() -> Weights:
    """A tiny autoencoder for SD 1.5 latents, as `taesd_decoder.*` and `taesd_encoder.*`."""
    with torch.device("meta"):
        model = import_comfy("comfy.taesd.taesd").TAESD(latent_channels=4)
    return {
        key: torch.tensor(1.0) if not value.ndim else random_tensor(key, tuple(value.shape), SEED)
        for key, value in model.state_dict().items()
    }


def text_encoder_weights() -> Weights:
    """A CLIP-L text encoder in float16: its shape is fixed by ComfyUI, so all layers but the first only pass on.

    A layer whose matrices are zero adds nothing to its residual stream; that makes 123 million weights quick to write.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (49408, CLIP_WIDTH),
        "embeddings.position_embedding.weight": (77, CLIP_WIDTH),
    }
    norms = ["final_layer_norm"]
    for layer in range(CLIP_LAYERS):
        at = f"encoder.layers.{layer}"
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{at}.self_attn.{part}.weight"] = (CLIP_WIDTH, CLIP_WIDTH)
            shapes[f"{at}.self_attn.{part}.bias"] = (CLIP_WIDTH,)
        for part, sizes in (("fc1", (4 * CLIP_WIDTH, CLIP_WIDTH)), ("fc2", (CLIP_WIDTH, 4 * CLIP_WIDTH))):
            shapes[f"{at}.mlp.{part}.weight"] = sizes
            shapes[f"{at}.mlp.{part}.bias"] = sizes[:1]
    for norm in norms:
        shapes |= {f"{norm}.weight": (CLIP_WIDTH,), f"{norm}.bias": (CLIP_WIDTH,)}
    return {
        f"text_model.{key}": (
            random_tensor(key, shape, SEED) if ".layers." not in key or ".layers.0." in key else torch.zeros(shape)
        ).half()
        for key, shape in shapes.items()
    }


def write_vae(folder: Path) -> Path:
    """Write `vae/tiny_vae.safetensors`."""
    return save(vae_weights(), folder / "vae" / VAE)


def write_text_encoder(folder: Path) -> Path:
    """Write `text_encoders/tiny_clip_l.safetensors`, 246 MB."""
    return save(text_encoder_weights(), folder / "text_encoders" / TEXT_ENCODER)


def write_checkpoint(folder: Path) -> Path:
    """Write `checkpoints/tiny_sd15_checkpoint.safetensors`: diffusion model, text encoder and autoencoder in one."""
    parts = {
        "model.diffusion_model.": diffusion_weights("sd15"),
        "cond_stage_model.transformer.": text_encoder_weights(),
        "first_stage_model.": vae_weights(),
    }
    weights = {f"{prefix}{key}": value for prefix, part in parts.items() for key, value in part.items()}
    return save(weights, folder / "checkpoints" / CHECKPOINT)


def writers() -> dict[str, Callable[[Path], object]]:
    """Everything that can be written, by name."""
    tasks: dict[str, Callable[[Path], object]] = {
        "flux-bf16": lambda folder: write_diffusion_model(folder, "flux", torch.bfloat16),
        "flux-gguf": lambda folder: write_gguf_twin(folder, "flux"),
        "wan-gguf": lambda folder: write_gguf_twin(folder, "wan"),
        "vae": write_vae,
        "clip": write_text_encoder,
        "checkpoint": write_checkpoint,
        "control": side_models.write_control_net,
        "difference": side_models.write_difference,
        "vision": side_models.write_image_encoder,
        "diffusers": side_models.write_diffusers,
    }
    for name in TINY_MODELS:
        tasks[name] = lambda folder, name=name: write_diffusion_model(folder, name)  # type: ignore[misc]
        tasks[f"{name}-lora"] = lambda folder, name=name: write_lora(folder, name)  # type: ignore[misc]
    return tasks


def main() -> None:
    """Write the files that are asked for."""
    parser = argparse.ArgumentParser(description="Write tiny checkpoints into a models folder.")
    parser.add_argument("folder", type=Path, help="the models folder")
    parser.add_argument("names", nargs="*", help=f"what to write (default: all of {', '.join(writers())})")
    options = parser.parse_args()
    tasks = writers()
    for name in options.names or tasks:
        tasks[name](options.folder)


if __name__ == "__main__":
    main()
