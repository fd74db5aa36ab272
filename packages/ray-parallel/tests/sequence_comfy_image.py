"""Tiny image models of a ComfyUI checkout with random weights, and what its samplers would call them with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sequence_host import call, flux_sizes, host, options
from sequence_tiny import (
    Built,
    Case,
    mix_tokens,
    normal,
    pictures,
    qwen_sizes,
    residuals,
    seeded,
    text_mask,
    uniform,
)


def flux(
    *,
    heads: int = 3,
    text: int = 7,
    batch: int = 1,
    references: int = 0,
    flux2: bool = False,
    timestep_zero: bool = False,
    control: bool = False,
    mask: bool = False,
) -> Built:
    """FLUX.1 and FLUX.2, 35 tokens; `references` of 12 tokens each, whose timestep may be zero."""
    if flux2:
        kind: dict[str, Any] = {
            "global_modulation": True,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "txt_ids_dims": [3],
            "axes_dim": [4, 4, 4, 4],
            "vec_in_dim": None,
        }
    else:
        kind = {"qkv_bias": True, "txt_ids_dims": [], "axes_dim": [4, 6, 6], "vec_in_dim": 12}
    model = host("comfy.ldm.flux.model").Flux(
        in_channels=4,
        out_channels=4,
        theta=10000,
        patch_size=2,
        guidance_embed=True,
        **flux_sizes(heads),
        **kind,
        **options(),
    )
    arguments = call(normal(batch, 4, 14, 10), time=0.6, text=text, guidance=torch.full((batch,), 3.5))
    if not flux2:
        arguments["y"] = normal(batch, 12)
    if references:
        arguments["ref_latents"] = pictures(references, batch, 4, 8, 6)
    if timestep_zero:
        arguments["ref_latents_method"] = "index_timestep_zero"
    if control:
        arguments["control"] = _control(batch, heads * 16)
    if mask:
        seen = uniform(1, 35 + text, 35 + text, seed=3) > 0.3
        arguments["attention_mask"] = torch.where(seen, 0.0, -1e4)
    return seeded(model), arguments


def _control(batch: int, width: int) -> dict[str, list[torch.Tensor | None]]:
    """What a ControlNet adds after the double blocks and after the single ones."""
    return {"input": residuals(35, width, 3, None, batch=batch), "output": residuals(35, width, 4, 5, batch=batch)}


def chroma(*, heads: int = 3, control: bool = False) -> Built:
    """Chroma, 35 + 7 tokens."""
    model = host("comfy.ldm.chroma.model").Chroma(
        in_channels=16,
        out_channels=16,
        axes_dim=[4, 6, 6],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        in_dim=64,
        out_dim=heads * 16,
        hidden_dim=32,
        n_layers=1,
        txt_ids_dims=[],
        vec_in_dim=None,
        **flux_sizes(heads),
        **options(),
    )
    arguments = call(normal(1, 4, 14, 10), time=0.6, guidance=torch.zeros(1))
    if control:
        arguments["control"] = _control(1, heads * 16)
    return seeded(model), arguments


def qwen_image(
    *,
    heads: int = 3,
    text: int = 7,
    mask: bool = False,
    references: int = 0,
    method: str = "index",
    control: bool = False,
) -> Built:
    """Qwen-Image and its edit form, 35 tokens and 12 for each reference."""
    model = host("comfy.ldm.qwen_image.model").QwenImageTransformer2DModel(**qwen_sizes(heads), **options())
    arguments = call(normal(1, 4, 1, 14, 10), time=0.6, text=text)
    if mask:
        arguments["attention_mask"] = text_mask(text - 2, text)
    if references:
        arguments["ref_latents"] = pictures(references, 1, 4, 1, 8, 6)
        arguments["ref_latents_method"] = method
    if control:
        arguments["control"] = {"input": residuals(35, heads * 16, 3, 4)}
    return seeded(model), arguments


def lumina(*, heads: int = 3, key_heads: int | None = None, padding: int | None = None, references: int = 0) -> Built:
    """Lumina 2, 35 + 7 tokens; with `padding` it is Z-Image, whose omni form takes `references`."""
    axes = [32, 32, 32] if padding else [4, 6, 6]
    model = host("comfy.ldm.lumina.model").NextDiT(
        patch_size=2,
        in_channels=4,
        dim=heads * sum(axes),
        n_layers=2,
        n_refiner_layers=2,
        n_heads=heads,
        n_kv_heads=key_heads or heads,
        multiple_of=16,
        ffn_dim_multiplier=0.5,
        qk_norm=True,
        cap_feat_dim=20,
        axes_dims=axes,
        axes_lens=[64, 64, 64],
        z_image_modulation=padding is not None,
        time_scale=1000.0,
        pad_tokens_multiple=padding,
        **options(),
    )
    arguments = call(normal(1, 4, 14, 10), time=0.6, times="timesteps", num_tokens=7, transformer_options={})
    if references:
        arguments["ref_latents"] = pictures(references, 1, 4, 8, 6)
        arguments["ref_contexts"] = pictures(references, 1, 5, 20)
    return seeded(model), arguments


def hidream(*, heads: int = 3) -> Built:
    """HiDream-I1, 35 tokens, with a mixture of experts."""
    model = host("comfy.ldm.hidream.model").HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=heads,
        caption_channels=[20, 24],
        text_emb_dim=12,
        axes_dims_rope=(4, 6, 6),
        llama_layers=[0, 1, 2, 3],
        max_resolution=(32, 32),
        **options(),
    )
    layers_of_text = normal(1, 4, 9, 24)
    return seeded(model), call(
        normal(1, 4, 14, 10), time=600.0, times="t", y=normal(1, 12), encoder_hidden_states_llama3=layers_of_text
    )


def sd3(*, dual: bool = False, control: bool = False, text: int = 7) -> Built:
    """Stable Diffusion 3 (`dual`: 3.5 medium, whose first blocks attend twice), 35 tokens, 3 heads."""
    model = host("comfy.ldm.modules.diffusionmodules.mmdit").OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,
        in_channels=4,
        depth=3,
        num_patches=256,
        pos_embed_max_size=16,
        pos_embed_scaling_factor=None,
        adm_in_channels=12,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 20, "out_features": 192}},
        qk_norm="rms" if dual else None,
        x_block_self_attn_layers=[0, 1] if dual else [],
        **options(),
    )
    arguments = call(normal(1, 4, 14, 10), time=600.0, text=text, times="timesteps", y=normal(1, 12))
    if control:
        arguments["control"] = {"output": residuals(35, 192, 3, None, 4)}
    return seeded(model), arguments


def patched(build: Callable[[], Built], *names: str) -> Built:
    """The same call with patches of the host that mix all tokens."""
    model, arguments = build()
    return model, arguments | {"transformer_options": {"patches": {name: [mix_tokens] for name in names}}}


CASES = (
    Case(name="Flux: 35 + 7 tokens, 3 heads", build=flux),
    Case(name="Flux: batch 2, 2 text tokens", build=partial(flux, batch=2, text=2)),
    Case(name="Flux: patch before the blocks", build=partial(patched, flux, "post_input")),
    Case(name="Flux: dense mask", build=partial(flux, mask=True)),
    Case(name="Flux: ControlNet", build=partial(flux, control=True)),
    Case(name="Flux: two Kontext references", build=partial(flux, references=2)),
    Case(name="Flux 2: references with timestep 0", build=partial(flux, flux2=True, references=2, timestep_zero=True)),
    Case(name="Chroma: ControlNet", build=partial(chroma, control=True)),
    Case(name="Qwen-Image: 35 + 7 tokens, 4 heads", build=partial(qwen_image, heads=4)),
    Case(name="Qwen-Image: text mask", build=partial(qwen_image, mask=True)),
    Case(
        name="Qwen-Image: references with timestep 0, ControlNet",
        build=partial(qwen_image, references=2, method="index_timestep_zero", control=True),
    ),
    Case(
        name="Qwen-Image: patches before and between the blocks",
        build=partial(patched, qwen_image, "post_input", "double_block"),
    ),
    Case(name="Z-Image: padding to 8", build=partial(lumina, padding=8)),
    Case(name="Z-Image: patch in the refiner", build=partial(patched, partial(lumina, padding=8), "noise_refiner")),
    Case(name="Z-Image: references", build=partial(lumina, padding=8, references=2)),
    Case(name="Lumina 2: 4 heads, 2 key heads", build=partial(lumina, heads=4, key_heads=2)),
    Case(name="HiDream: 35 + 25 tokens", build=hidream),
    Case(name="SD3: 35 + 7 tokens", build=sd3),
    Case(name="SD3: two attentions, ControlNet", build=partial(sd3, dual=True, control=True)),
    Case(name="SD3: 2 text tokens", build=partial(sd3, text=2)),
)
