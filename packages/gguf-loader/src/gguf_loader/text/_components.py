"""The text encoders of diffusion models that llama.cpp's converter writes, and how each one's names and weights read.

Targets are the names of the original checkpoints (Hugging Face), which ComfyUI's text encoders take as well. Source:
llama.cpp's `conversion/` and gguf-py's tensor name tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gguf_loader._errors import GgufKeyError, quoted
from gguf_loader.file._header import GgufHeader
from gguf_loader.file._identify import has_original_names

from ._key_map import KeyMap, with_suffixes

_ROPE = frozenset({"rope_freqs.weight", "blk.{n}.attn_rot_embd.weight"})

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma normalises on both sides of attention and of the MLP, which moves the meaning of two names.
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA4_LAYER = _GEMMA_LAYER | {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "ffn_gate_inp": "router.proj",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
_GEMMA4_WHOLE = {
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
    "blk.{n}.layer_output_scale.weight": "model.layers.{n}.layer_scalar",
    "blk.{n}.ffn_gate_inp.scale": "model.layers.{n}.router.scale",
    "blk.{n}.ffn_gate_up_exps.weight": "model.layers.{n}.experts.gate_up_proj",
    "blk.{n}.ffn_down_exps.weight": "model.layers.{n}.experts.down_proj",
    "blk.{n}.ffn_down_exps.scale": "model.layers.{n}.router.per_expert_scale",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_T5_ATTENTION = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
}
_T5_CROSS_ATTENTION = {
    "cross_attn_norm": "layer.1.layer_norm",
    "cross_attn_q": "layer.1.EncDecAttention.q",
    "cross_attn_k": "layer.1.EncDecAttention.k",
    "cross_attn_v": "layer.1.EncDecAttention.v",
    "cross_attn_o": "layer.1.EncDecAttention.o",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextComponent:
    """How one family of text encoders reads.

    Attributes:
        name: of the family.
        key_map: from llama.cpp's names to the checkpoint's.
        interleaved_heads: whether the converter reordered the rows of q and k for its own RoPE.
        norm_offset: what the converter added to the weight of every norm.
        projectors: the vision projectors (`clip.projector_type`) that can belong to it.
    """

    name: str
    key_map: KeyMap
    interleaved_heads: bool = False
    norm_offset: float = 0.0
    projectors: frozenset[str] = frozenset()


def component_of(header: GgufHeader, architecture: str | None = None) -> TextComponent:
    """The component that a file holds, by `general.architecture` or by the name given instead.

    A file whose tensors have the names of the original checkpoint, as converters other than llama.cpp's leave them, is
    taken unchanged.

    Raises:
        GgufKeyError: no component has the architecture.
    """
    if architecture is None and has_original_names(header.tensors):
        return TextComponent(name="original", key_map=KeyMap({name: name for name in header.tensors}))
    name = header.architecture if architecture is None else architecture
    if name in ("t5", "t5encoder"):
        # Version 1.1 gates its MLP; version 1.0 has one matrix where that has two.
        return _T5_GATED if "enc.blk.0.ffn_gate.weight" in header.tensors else _T5_PLAIN
    component = COMPONENTS.get(name) if name is not None else None
    if component is None:
        header.require("text encoder")
        raise GgufKeyError(
            f"no text encoder is known under the architecture {quoted(name)}",
            path=header.path,
            field="general.architecture",
            remedy=f"name the one that it is like: t5, {', '.join(COMPONENTS)}",
        )
    return component


def _decoder_only(layer: Mapping[str, str], whole: Mapping[str, str] = MappingProxyType({})) -> KeyMap:
    names = with_suffixes(_OUTSIDE) | with_suffixes(layer, "blk.{n}.", "model.layers.{n}.")
    return KeyMap({**names, **whole}, _ROPE)


def _t5(*, gated: bool) -> KeyMap:
    up = "wi_1" if gated else "wi"
    dense = {"ffn_gate": "DenseReluDense.wi_0", "ffn_up": f"DenseReluDense.{up}", "ffn_down": "DenseReluDense.wo"}
    dense["ffn_norm"] = "layer_norm"
    encoder = _T5_ATTENTION | {source: f"layer.1.{name}" for source, name in dense.items()}
    decoder = _T5_ATTENTION | _T5_CROSS_ATTENTION | {source: f"layer.2.{name}" for source, name in dense.items()}
    outside = {
        "token_embd": "shared",
        "output": "lm_head",
        "enc.output_norm": "encoder.final_layer_norm",
        "dec.output_norm": "decoder.final_layer_norm",
    }
    return KeyMap(
        with_suffixes(outside)
        | with_suffixes(encoder, "enc.blk.{n}.", "encoder.block.{n}.")
        | with_suffixes(decoder, "dec.blk.{n}.", "decoder.block.{n}.")
    )


_T5_GATED = TextComponent(name="t5", key_map=_t5(gated=True))
_T5_PLAIN = TextComponent(name="t5", key_map=_t5(gated=False))

_LLAMA = _decoder_only(_LAYER)
_GEMMA = _decoder_only(_GEMMA_LAYER)

COMPONENTS: Mapping[str, TextComponent] = MappingProxyType(
    {
        "llama": TextComponent(name="llama", key_map=_LLAMA, interleaved_heads=True),
        "mistral3": TextComponent(name="mistral", key_map=_LLAMA, interleaved_heads=True),
        "qwen2": TextComponent(name="qwen2", key_map=_LLAMA),
        "qwen2vl": TextComponent(
            name="qwen2vl", key_map=_LLAMA, projectors=frozenset({"qwen2vl_merger", "qwen2.5vl_merger"})
        ),
        "qwen3": TextComponent(name="qwen3", key_map=_LLAMA),
        "qwen3vl": TextComponent(name="qwen3vl", key_map=_LLAMA, projectors=frozenset({"qwen3vl_merger"})),
        "gemma2": TextComponent(name="gemma2", key_map=_GEMMA, norm_offset=1.0),
        "gemma3": TextComponent(name="gemma3", key_map=_GEMMA, norm_offset=1.0, projectors=frozenset({"gemma3"})),
        "gemma4": TextComponent(name="gemma4", key_map=_decoder_only(_GEMMA4_LAYER, _GEMMA4_WHOLE)),
    }
)
"""The decoder-only components by `general.architecture`; T5's differ in their tensors."""
