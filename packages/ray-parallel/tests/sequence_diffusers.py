"""Tiny models of diffusers with random weights, and what a pipeline would call them with."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from sequence_tiny import Built, Case, normal, qwen_sizes, residuals, seeded, text_mask, uniform


def flux(
    *,
    heads: int = 3,
    image: int = 35,
    text: int = 7,
    batch: int = 1,
    reference: int = 0,
    control: bool = False,
    lora_scale: bool = False,
) -> Built:
    """FLUX.1; `reference` tokens follow the image as in Kontext, `control` adds the residuals of a ControlNet."""
    width = heads * 16
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    arguments: dict[str, Any] = {
        "hidden_states": normal(batch, image + reference, 4),
        "encoder_hidden_states": normal(batch, text, 20),
        "pooled_projections": normal(batch, 12),
        "timestep": torch.full((batch,), 0.6),
        "img_ids": _positions(image, reference),
        "txt_ids": torch.zeros(text, 3),
        "guidance": torch.full((batch,), 3.5),
        "return_dict": False,
    }
    if control:
        tokens = image + reference
        arguments["controlnet_block_samples"] = residuals(tokens, width, 3, batch=batch)
        arguments["controlnet_single_block_samples"] = residuals(tokens, width, 4, 5, batch=batch)
    if lora_scale:
        arguments["joint_attention_kwargs"] = {"scale": 1.0}
    return seeded(model), arguments


def _positions(image: int, reference: int) -> torch.Tensor:
    """Rows of a picture seven tokens wide, the tokens of the reference picture marked in the first column."""
    token = torch.arange(image + reference)
    index = torch.where(token < image, token, token - image)
    return torch.stack([(token >= image).long(), index // 7, index % 7], 1).float()


def wan(*, heads: int = 3, frames: int = 3, text: int = 7, per_token: bool = False, picture: bool = False) -> Built:
    """Wan 2.1/2.2: 15 tokens a frame; `per_token` as in Wan 2.2 TI2V, `picture` as in Wan 2.1 I2V."""
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=20,
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
        rope_max_seq_len=32,
        image_dim=16 if picture else None,
        added_kv_proj_dim=heads * 24 if picture else None,
    )
    timestep = torch.full((1,), 500.0)
    if per_token:
        timestep = torch.full((1, frames * 15), 500.0)
        timestep[:, :15] = 0
    arguments: dict[str, Any] = {
        "hidden_states": normal(1, 4, frames, 10, 6),
        "timestep": timestep,
        "encoder_hidden_states": normal(1, 512 if picture else text, 20),
        "return_dict": False,
    }
    if picture:
        arguments["encoder_hidden_states_image"] = normal(1, 5, 16)
    return seeded(model), arguments


def ltx(*, heads: int = 3, frames: int = 3, text: int = 7, per_token: bool = False, mask: bool = False) -> Built:
    """LTX-Video: 15 tokens a frame; `per_token` timesteps as for a given first frame, `mask` hides two text tokens."""
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=heads,
        attention_head_dim=16,
        cross_attention_dim=heads * 16,
        num_layers=2,
        caption_channels=20,
    )
    tokens = frames * 15
    return seeded(model), {
        "hidden_states": normal(1, tokens, 8),
        "encoder_hidden_states": normal(1, text, 20),
        "timestep": 1000 * uniform(1, tokens) if per_token else torch.full((1,), 600.0),
        "encoder_attention_mask": text_mask(text - 2 if mask else text, text),
        "num_frames": frames,
        "height": 5,
        "width": 3,
        "return_dict": False,
    }


def qwen_image(
    *, heads: int = 3, text: int = 7, mask: bool = False, edit: bool = False, control: bool = False
) -> Built:
    """Qwen-Image, 35 tokens; `edit` adds a reference of 12 tokens with its own timestep."""
    model = diffusers.QwenImageTransformer2DModel(**qwen_sizes(heads), zero_cond_t=edit)
    tokens = 47 if edit else 35
    arguments: dict[str, Any] = {
        "hidden_states": normal(1, tokens, 16),
        "encoder_hidden_states": normal(1, text, 20),
        "timestep": torch.full((1,), 0.6),
        "img_shapes": [[(1, 7, 5), (1, 4, 3)] if edit else [(1, 7, 5)]],
        "return_dict": False,
    }
    if mask:
        arguments["encoder_hidden_states_mask"] = text_mask(text - 2, text)
    if control:
        arguments["controlnet_block_samples"] = residuals(tokens, heads * 16, 3, 4)
    return seeded(model), arguments


def hunyuan_video(*, heads: int = 3, text: int = 7, mask: bool = False, token_replace: bool = False) -> Built:
    """HunyuanVideo, 3 frames of 15 tokens; `token_replace` as in its image-to-video form."""
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=heads,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=20,
        pooled_projection_dim=12,
        rope_axes_dim=(4, 6, 6),
        image_condition_type="token_replace" if token_replace else None,
    )
    return seeded(model), {
        "hidden_states": normal(1, 4, 3, 10, 6),
        "timestep": torch.full((1,), 600.0),
        "encoder_hidden_states": normal(1, text, 20),
        "encoder_attention_mask": text_mask(text - 2 if mask else text, text),
        "pooled_projections": normal(1, 12),
        "guidance": torch.full((1,), 6000.0),
        "return_dict": False,
    }


def sd3(*, heads: int = 3, text: int = 7, dual: bool = False, control: bool = False) -> Built:
    """Stable Diffusion 3 (`dual`: 3.5 medium, whose first blocks attend twice), 35 tokens."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=20,
        caption_projection_dim=heads * 16,
        pooled_projection_dim=12,
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1) if dual else (),
        qk_norm="rms_norm" if dual else None,
    )
    arguments: dict[str, Any] = {
        "hidden_states": normal(1, 4, 14, 10),
        "encoder_hidden_states": normal(1, text, 20),
        "pooled_projections": normal(1, 12),
        "timestep": torch.full((1,), 600.0),
        "return_dict": False,
    }
    if control:
        arguments["block_controlnet_hidden_states"] = residuals(35, heads * 16, 3, 4, 5)
    return seeded(model), arguments


CASES = (
    Case(name="Flux: 35 + 7 tokens, 3 heads", build=flux),
    Case(name="Flux: batch 2, 2 text tokens", build=partial(flux, batch=2, text=2)),
    Case(name="Flux: Kontext reference", build=partial(flux, reference=12)),
    Case(name="Flux: LoRA scale", build=partial(flux, lora_scale=True)),
    Case(name="Flux: ControlNet", build=partial(flux, control=True)),
    Case(name="Wan: 45 tokens, 3 heads", build=wan),
    Case(name="Wan: 4 heads, 75 tokens", build=partial(wan, heads=4, frames=5)),
    Case(name="Wan: timestep a token", build=partial(wan, per_token=True)),
    Case(name="Wan: picture to video", build=partial(wan, picture=True)),
    Case(name="LTX: text mask, timestep a token", build=partial(ltx, per_token=True, mask=True)),
    Case(name="LTX: 2 heads", build=partial(ltx, heads=2)),
    Case(name="Qwen-Image: text mask", build=partial(qwen_image, mask=True)),
    Case(name="Qwen-Image: reference, ControlNet", build=partial(qwen_image, edit=True, control=True)),
    Case(name="HunyuanVideo: text mask", build=partial(hunyuan_video, mask=True)),
    Case(name="HunyuanVideo: token replace", build=partial(hunyuan_video, token_replace=True)),
    Case(name="SD3: 35 + 7 tokens", build=sd3),
    Case(name="SD3: two attentions", build=partial(sd3, dual=True)),
    Case(name="SD3: ControlNet", build=partial(sd3, control=True)),
)
