"""Tiny video models of a ComfyUI checkout with random weights, and what its samplers would call them with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from sequence_host import call, flux_sizes, host, options
from sequence_tiny import Built, Case, mix_tokens, normal, pictures, residuals, seeded, text_mask, uniform


def wan(
    *,
    heads: int = 3,
    frames: int = 3,
    picture: bool = False,
    per_frame: bool = False,
    vace: bool = False,
    camera: bool = False,
    references: int = 0,
    patch: bool = False,
) -> Built:
    """Wan 2.1/2.2, 15 tokens a frame; `patch` is a host patch between the blocks that mixes all tokens."""
    sizes: dict[str, Any] = {
        "in_dim": 4,
        "dim": heads * 24,
        "ffn_dim": 96,
        "freq_dim": 32,
        "text_dim": 20,
        "out_dim": 4,
        "num_heads": heads,
        "num_layers": 2,
        "cross_attn_norm": True,
    }
    models = host("comfy.ldm.wan.model")
    if vace:
        model = models.VaceWanModel(**sizes, vace_layers=2, vace_in_dim=6, **options())
    elif camera:
        model = models.CameraWanModel(model_type="camera_2.2", **sizes, **options())
    else:
        model = models.WanModel(model_type="i2v" if picture else "t2v", **sizes, **options())
    arguments = call(normal(1, 4, frames, 10, 6), time=500.0)
    if per_frame:
        arguments["timestep"] = torch.full((1, frames), 500.0)
        arguments["timestep"][:, 0] = 0
    if picture:
        arguments["clip_fea"] = normal(1, 5, 1280)
    if references:
        arguments["context_latents"] = pictures(references, 1, 4, 1, 8, 6)
    if vace:
        arguments |= {"vace_context": normal(1, 1, 6, frames, 10, 6), "vace_strength": [0.8]}
    if camera:
        arguments["camera_conditions"] = normal(1, 24, frames, 80, 48)
    if patch:
        arguments["transformer_options"] = {"patches": {"double_block": [mix_tokens]}}
    return seeded(model), arguments


def hunyuan_video(
    *, heads: int = 3, mask: bool = False, guiding_frame: bool = False, reference: bool = False, control: bool = False
) -> Built:
    """HunyuanVideo, 3 frames of 15 tokens and 7 text tokens."""
    model = host("comfy.ldm.hunyuan_video.model").HunyuanVideo(
        in_channels=4,
        out_channels=4,
        vec_in_dim=12,
        axes_dim=[4, 6, 6],
        theta=256,
        patch_size=[1, 2, 2],
        qkv_bias=True,
        guidance_embed=True,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
        **flux_sizes(heads),
        **options(),
    )
    arguments = call(normal(1, 4, 3, 10, 6), time=600.0, y=normal(1, 12), guidance=torch.full((1,), 6000.0))
    if mask:
        arguments["attention_mask"] = text_mask(5, 7)
    if guiding_frame:
        arguments["guiding_frame_index"] = torch.zeros(1)
    if reference:
        arguments["ref_latent"] = normal(1, 4, 1, 10, 6, seed=8)
    if control:
        width = heads * 16
        arguments["control"] = {"input": residuals(45, width, 3, 4), "output": residuals(45, width, None, 5)}
    return seeded(model), arguments


def ltxv(
    *,
    heads: int = 3,
    frames: int = 3,
    per_token: bool = False,
    mask: bool = False,
    guide: bool = False,
    cross_modulation: bool = False,
) -> Built:
    """LTX-Video, 15 tokens a frame; `guide`: the last frame is a guide of strength 0.4, with its own mask."""
    model = host("comfy.ldm.lightricks.model").LTXVModel(
        in_channels=8,
        cross_attention_dim=heads * 16,
        attention_head_dim=16,
        num_attention_heads=heads,
        caption_channels=20,
        num_layers=2,
        cross_attention_adaln=cross_modulation,
        **options(),
    )
    arguments = call(
        normal(1, 8, frames, 5, 3), time=0.6, attention_mask=text_mask(5, 7) if mask else None, frame_rate=25
    )
    if per_token or guide:
        arguments["timestep"] = uniform(1, frames * 15, seed=4)
    if guide:
        arguments |= _guide(frames)
    return seeded(model), arguments


def _guide(frames: int) -> dict[str, Any]:
    """The last frame is a guide of strength 0.4."""
    entry = {"pre_filter_count": 15, "strength": 0.4, "pixel_mask": None, "latent_shape": None}
    return {
        "keyframe_idxs": 4 * uniform(1, 3, 15, 2, seed=5),
        "denoise_mask": torch.ones(1, 1, frames, 5, 3),
        "guide_attention_entries": [entry],
    }


def ltxav(
    *, heads: int = 3, frames: int = 3, audio: int = 11, per_frame: bool = True, guide: bool = False, mask: bool = False
) -> Built:
    """LTX-2, video of 15 tokens a frame with `audio` tokens of sound; timesteps compressed to one row a frame."""
    model = host("comfy.ldm.lightricks.av_model").LTXAVModel(
        in_channels=8,
        audio_in_channels=128,
        cross_attention_dim=heads * 16,
        audio_cross_attention_dim=heads * 8,
        attention_head_dim=16,
        audio_attention_head_dim=8,
        num_attention_heads=heads,
        audio_num_attention_heads=heads,
        caption_channels=20,
        num_layers=2,
        cross_attention_adaln=True,
        apply_gated_attention=True,
        rope_type="split",
        connector_num_attention_heads=2,
        connector_attention_head_dim=8,
        connector_num_layers=1,
        **options(),
    )
    if per_frame:
        video = uniform(1, frames, 1, seed=4).expand(1, frames, 15).reshape(1, -1)
        timestep = (video, torch.full((1, audio), 0.6))
    else:
        timestep = (torch.full((1,), 0.6), torch.full((1,), 0.6))
    arguments: dict[str, Any] = {
        "x": [normal(1, 8, frames, 5, 3), normal(1, 8, audio, 16)],
        "timestep": timestep,
        "context": normal(1, 7, 40),
        "attention_mask": text_mask(5, 7) if mask else None,
        "frame_rate": 25,
    }
    if guide:
        arguments |= _guide(frames)
    return seeded(model), arguments


def cosmos_predict2(
    *, heads: int = 3, frames: int = 3, per_frame: bool = False, block_positions: bool = False
) -> Built:
    """Cosmos-Predict2, 15 tokens a frame, hidden states as a grid."""
    model = host("comfy.ldm.cosmos.predict2").MiniTrainDIT(
        max_img_h=32,
        max_img_w=32,
        max_frames=16,
        in_channels=4,
        out_channels=4,
        patch_spatial=2,
        patch_temporal=1,
        concat_padding_mask=False,
        model_channels=heads * 24,
        num_blocks=2,
        num_heads=heads,
        mlp_ratio=2.0,
        crossattn_emb_channels=20,
        pos_emb_cls="rope3d",
        pos_emb_learnable=False,
        pos_emb_interpolation="crop",
        use_adaln_lora=True,
        adaln_lora_dim=16,
        extra_per_block_abs_pos_emb=block_positions,
        **options(),
    )
    arguments = call(normal(1, 4, frames, 6, 10), time=0.6, times="timesteps", transformer_options={})
    if per_frame:
        arguments["timesteps"] = uniform(1, frames, seed=4)
    return seeded(model), arguments


CASES = (
    Case(name="Wan: 45 tokens, 3 heads", build=wan),
    Case(name="Wan: 8 heads, 90 tokens", build=partial(wan, heads=8, frames=6)),
    Case(name="Wan: picture to video", build=partial(wan, picture=True)),
    Case(name="Wan: timestep a frame, 3 frames", build=partial(wan, per_frame=True)),
    Case(name="Wan: timestep a frame, 5 frames", build=partial(wan, per_frame=True, frames=5)),
    Case(name="Wan: references", build=partial(wan, references=2)),
    Case(
        name="Wan: timestep a frame, rows that do not divide the tokens",
        build=partial(wan, per_frame=True, frames=5, references=1),
    ),
    Case(name="Wan: patch between the blocks", build=partial(wan, patch=True)),
    Case(name="Wan VACE: 45 tokens", build=partial(wan, vace=True)),
    Case(name="Wan VACE: picture to video", build=partial(wan, vace=True, picture=True)),
    Case(name="Wan Camera: 45 tokens", build=partial(wan, camera=True)),
    Case(name="HunyuanVideo: text mask", build=partial(hunyuan_video, mask=True)),
    Case(
        name="HunyuanVideo: guiding frame, ControlNet", build=partial(hunyuan_video, guiding_frame=True, control=True)
    ),
    Case(name="HunyuanVideo: reference", build=partial(hunyuan_video, reference=True)),
    Case(name="LTXV: timestep a token, text mask", build=partial(ltxv, per_token=True, mask=True)),
    Case(name="LTXV: guide mask", build=partial(ltxv, guide=True, frames=4)),
    Case(name="LTXV: cross modulation", build=partial(ltxv, cross_modulation=True, heads=4)),
    Case(name="LTXAV: timestep a frame, 3 frames", build=ltxav),
    Case(name="LTXAV: timestep a frame, 5 frames", build=partial(ltxav, frames=5, heads=4)),
    Case(name="LTXAV: guide mask, text mask", build=partial(ltxav, frames=4, guide=True, mask=True)),
    Case(name="LTXAV: one timestep", build=partial(ltxav, per_frame=False)),
    Case(name="Cosmos-Predict2: 3 frames", build=cosmos_predict2),
    Case(name="Cosmos-Predict2: timestep a frame, 5 frames", build=partial(cosmos_predict2, frames=5, per_frame=True)),
    Case(name="Cosmos-Predict2: an image, 3 lines", build=partial(cosmos_predict2, frames=1)),
    Case(name="Cosmos-Predict2: positions a block", build=partial(cosmos_predict2, block_positions=True)),
)
