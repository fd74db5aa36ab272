"""The vision towers (mmproj files) that llama.cpp's converter writes for text encoders, read back.

The converter takes apart what it cannot express: a 3-D patch convolution becomes two 2-D ones, a fused qkv may become
three matrices, and lists that belong to a few layers are numbered by layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from gguf_loader._errors import GgufKeyError, quoted
from gguf_loader.file._header import GgufHeader
from gguf_loader.file._identify import PATCH
from gguf_loader.packed._tensor import PackedTensor

from ._key_map import KeyMap, with_suffixes

_DEEPSTACK = re.compile(r"v\.deepstack\.(\d+)\.")

LATER_PATCH = "v.patch_embd.weight.1"
PROJECTOR_KEYS = ("clip.vision.projector_type", "clip.projector_type")

_QWEN_BLOCK = {"ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj"}
_QWEN25_BLOCK = _QWEN_BLOCK | {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_QWEN2_BLOCK = _QWEN_BLOCK | {"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_QWEN3_BLOCK = _QWEN_BLOCK | {"ffn_up": "mlp.linear_fc1", "ffn_down": "mlp.linear_fc2"}
_QWEN2_OUTSIDE = {
    "v.patch_embd": "patch_embed.proj",
    "v.post_ln": "merger.ln_q",
    "mm.0": "merger.mlp.0",
    "mm.2": "merger.mlp.2",
}
_QWEN3_OUTSIDE = {
    "v.patch_embd": "patch_embed.proj",
    "v.position_embd": "pos_embed",
    "v.post_ln": "merger.norm",
    "mm.0": "merger.linear_fc1",
    "mm.2": "merger.linear_fc2",
    "v.deepstack.{n}.norm": "deepstack_merger_list.{n}.norm",
    "v.deepstack.{n}.fc1": "deepstack_merger_list.{n}.linear_fc1",
    "v.deepstack.{n}.fc2": "deepstack_merger_list.{n}.linear_fc2",
}
_SIGLIP_BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_SIGLIP_OUTSIDE = {
    "v.patch_embd": "vision_model.embeddings.patch_embedding",
    "v.position_embd": "vision_model.embeddings.position_embedding",
    "v.post_ln": "vision_model.post_layernorm",
    "mm.soft_emb_norm": "multi_modal_projector.mm_soft_emb_norm",
}
_SIGLIP_WHOLE = {"mm.input_projection.weight": "multi_modal_projector.mm_input_projection_weight"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionComponent:
    """How one family of vision towers reads.

    Attributes:
        name: the `clip.projector_type`.
        key_map: from llama.cpp's names, after `reassemble`, to the checkpoint's.
        fused_qkv: whether the checkpoint holds q, k and v of a block in one matrix.
        offset_norms: targets whose weight the converter added 1 to.
    """

    name: str
    key_map: KeyMap
    fused_qkv: bool = False
    offset_norms: frozenset[str] = frozenset()


def _qwen(name: str, outside: Mapping[str, str], block: Mapping[str, str], prefix: str) -> VisionComponent:
    names = with_suffixes(outside, target=prefix) | with_suffixes(block, "v.blk.{n}.", f"{prefix}blocks.{{n}}.")
    return VisionComponent(name=name, key_map=KeyMap(names), fused_qkv=True)


VISION_COMPONENTS: Mapping[str, VisionComponent] = MappingProxyType(
    {
        "qwen2vl_merger": _qwen("qwen2vl_merger", _QWEN2_OUTSIDE, _QWEN2_BLOCK, "visual."),
        "qwen2.5vl_merger": _qwen("qwen2.5vl_merger", _QWEN2_OUTSIDE, _QWEN25_BLOCK, "visual."),
        # ComfyUI distinguishes Qwen3-VL from Qwen3 by this prefix, which is also the one of the original checkpoints.
        "qwen3vl_merger": _qwen("qwen3vl_merger", _QWEN3_OUTSIDE, _QWEN3_BLOCK, "model.visual."),
        "gemma3": VisionComponent(
            name="gemma3",
            key_map=KeyMap(
                with_suffixes(_SIGLIP_OUTSIDE)
                | with_suffixes(_SIGLIP_BLOCK, "v.blk.{n}.", "vision_model.encoder.layers.{n}.")
                | _SIGLIP_WHOLE
            ),
            offset_norms=frozenset({"multi_modal_projector.mm_soft_emb_norm.weight"}),
        ),
    }
)


def projector_type(header: GgufHeader) -> str | None:
    """The kind of vision projector that a file says it holds; None where it says nothing."""
    for key in PROJECTOR_KEYS:
        if key in header.metadata:
            return header.metadata.text(key)
    return None


def vision_component_of(header: GgufHeader) -> VisionComponent:
    """The vision tower that a file holds.

    Raises:
        GgufKeyError: its projector is of no known kind.
    """
    name = projector_type(header)
    component = None if name is None else VISION_COMPONENTS.get(name)
    if component is None:
        raise GgufKeyError(
            f"no vision tower is known with the projector {quoted(name)}",
            path=header.path,
            field=PROJECTOR_KEYS[1],
            remedy=f"known are {', '.join(VISION_COMPONENTS)}; load the text encoder without it (mmproj=None)",
        )
    return component


def reassemble(tensors: Mapping[str, torch.Tensor], component: VisionComponent) -> dict[str, torch.Tensor]:
    """Put together again, under llama.cpp's names, what the converter took apart.

    Raises:
        GgufKeyError: one of the parts is missing, or does not fit the others.
    """
    whole = _numbered_by_position(dict(tensors))
    if LATER_PATCH in whole:
        whole[PATCH] = _stacked(whole.get(PATCH), whole.pop(LATER_PATCH))
    if component.fused_qkv:
        _fuse_qkv(whole)
    _unswap_mlp(whole)
    return whole


def _stacked(first: torch.Tensor | None, later: torch.Tensor) -> torch.Tensor:
    field = f"tensor {LATER_PATCH!r}"
    if first is None:
        raise GgufKeyError(f"stands without {PATCH}", field=field)
    if first.shape != later.shape:
        raise GgufKeyError(f"of shape {tuple(later.shape)}, where {PATCH} has {tuple(first.shape)}", field=field)
    return torch.stack((_dense(first), _dense(later)), dim=2)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.dequantize() if isinstance(tensor, PackedTensor) else tensor


def _fuse_qkv(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".attn_q." in name]:
        parts = {letter: name.replace(".attn_q.", f".attn_{letter}.") for letter in "qkv"}
        missing = [part for part in parts.values() if part not in tensors]
        if missing:
            raise GgufKeyError(f"stands without {', '.join(missing)}", field=f"tensor {quoted(name)}")
        tensors[name.replace(".attn_q.", ".attn_qkv.")] = _joined([tensors.pop(part) for part in parts.values()])


def _joined(rows: list[torch.Tensor]) -> torch.Tensor:
    kinds = {tensor.ggml_type if isinstance(tensor, PackedTensor) else tensor.dtype for tensor in rows}
    # Blocks of one type lie one behind the other as rows do; of several types, only their weights can be joined.
    return torch.cat(rows if len(kinds) == 1 else [_dense(tensor) for tensor in rows])


def _unswap_mlp(tensors: dict[str, torch.Tensor]) -> None:
    # Early converters wrote the two matrices of the MLP under each other's names; llama.cpp swaps them back, too.
    hidden = tensors.get("v.blk.0.ln1.weight")
    up = tensors.get("v.blk.0.ffn_up.weight")
    if hidden is None or up is None or up.shape[1] == hidden.shape[0]:
        return
    for name in [name for name in tensors if ".ffn_up." in name]:
        other = name.replace(".ffn_up.", ".ffn_down.")
        if other not in tensors:
            raise GgufKeyError(f"stands without {other}", field=f"tensor {quoted(name)}")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def _numbered_by_position(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {name: _DEEPSTACK.match(name) for name in tensors}
    layers = sorted({int(match[1]) for match in found.values() if match})
    positions = {layer: position for position, layer in enumerate(layers)}
    return {
        name if match is None else f"v.deepstack.{positions[int(match[1])]}.{name[match.end() :]}": tensors[name]
        for name, match in found.items()
    }
