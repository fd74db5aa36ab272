from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf_convert as convert
import pytest
import torch

from gguf_loader import GgufKeyError, load_text_encoder, read_header, type_by_name
from gguf_loader.packed._tensor import PackedTensor
from gguf_loader.text._vision import VISION_COMPONENTS, reassemble, vision_component_of

transformers = pytest.importorskip("transformers")

HIDDEN, TEXT_HIDDEN, LAYERS = 32, 64, 4
QWEN: dict[str, Any] = {"depth": LAYERS, "num_heads": 2, "patch_size": 4}


def qwen2() -> torch.nn.Module:
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel as Model

    return built(Model, Qwen2VLVisionConfig(embed_dim=HIDDEN, hidden_size=TEXT_HIDDEN, **QWEN))


def qwen25() -> torch.nn.Module:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Model

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "out_hidden_size": TEXT_HIDDEN}
    return built(Model, Qwen2_5_VLVisionConfig(**sizes, window_size=16, fullatt_block_indexes=[1, 3], **QWEN))


def qwen3() -> torch.nn.Module:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "out_hidden_size": TEXT_HIDDEN}
    settings = {"deepstack_visual_indexes": [1, 3], "num_position_embeddings": 16}
    return built(Qwen3VLVisionModel, Qwen3VLVisionConfig(**sizes, **settings, **QWEN))


def gemma3() -> torch.nn.Module:
    vision = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    text = {"vocab_size": 8, "hidden_size": TEXT_HIDDEN, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    config = transformers.Gemma3Config(
        text_config=text | {"num_attention_heads": 1, "num_key_value_heads": 1},
        vision_config=vision | {"image_size": 16, "patch_size": 4, "vision_use_head": False},
        mm_tokens_per_image=4,
    )
    model: torch.nn.Module = transformers.Gemma3ForConditionalGeneration(config).eval()
    return model


def built(model: Any, config: Any) -> torch.nn.Module:
    made: torch.nn.Module = model._from_config(config).eval()
    return made


def split_patches(tensors: convert.Tensors) -> convert.Tensors:
    split = dict(tensors)
    whole = split.pop("visual.patch_embed.proj.weight")
    split["v.patch_embd.weight"], split["v.patch_embd.weight.1"] = whole[:, :, 0], whole[:, :, 1]
    return split


def split_qkv(tensors: convert.Tensors) -> convert.Tensors:
    split: convert.Tensors = {}
    for name, tensor in tensors.items():
        if ".qkv." in name:
            split |= {name.replace("qkv", letter): part for letter, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def qwen2_parts(tensors: convert.Tensors) -> convert.Tensors:
    return split_qkv(split_patches({f"visual.{name}": tensor for name, tensor in tensors.items()}))


def qwen3_parts(tensors: convert.Tensors) -> convert.Tensors:
    """llama.cpp names Qwen3's merger by hand, and its deepstack mergers by the layers [1, 3] that feed them."""
    parts = split_patches({f"visual.{name}": tensor for name, tensor in tensors.items()})
    by_hand = {
        "visual.merger.norm": "v.post_ln",
        "visual.merger.linear_fc1": "mm.0",
        "visual.merger.linear_fc2": "mm.2",
    }
    for position, layer in enumerate((1, 3)):
        for source, target in (("norm", "norm"), ("linear_fc1", "fc1"), ("linear_fc2", "fc2")):
            by_hand[f"visual.deepstack_merger_list.{position}.{source}"] = f"v.deepstack.{layer}.{target}"
    named = {}
    for name, tensor in parts.items():
        stem, _, suffix = name.rpartition(".")
        named[f"{by_hand[stem]}.{suffix}" if stem in by_hand else name] = tensor
    return named


def gemma3_parts(tensors: convert.Tensors) -> convert.Tensors:
    parts = {}
    for name, tensor in tensors.items():
        if "vision_tower" in name:
            parts[name.replace("model.vision_tower.", "vision_tower.vision_model.")] = tensor
        elif "multi_modal_projector" in name:
            target = name.removeprefix("model.").replace("_weight", ".weight")
            parts[target] = tensor + 1 if "soft_emb_norm" in name else tensor
    return parts


def see_qwen(model: torch.nn.Module) -> torch.Tensor:
    pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        result = model(pixels, grid_thw=torch.tensor([[1, 4, 4]]))
    tensors = [result.pooler_output, *(getattr(result, "deepstack_features", None) or [])]
    return torch.cat([tensor.flatten() for tensor in tensors])


def see_gemma(model: torch.nn.Module) -> torch.Tensor:
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features: torch.Tensor = model.get_image_features(pixels).pooler_output  # type: ignore[operator]
    return features


@dataclass
class Tower:
    """A vision tower: its class, how llama.cpp takes it apart, and how the class names what the checkpoint names."""

    projector: str
    build: Callable[[], torch.nn.Module]
    parts: Callable[[convert.Tensors], convert.Tensors]
    see: Callable[[torch.nn.Module], torch.Tensor]
    architecture: str
    prefixes: dict[str, str]

    def made(self, seed: int) -> torch.nn.Module:
        model = self.build()
        convert.randomize(model, seed)
        return model

    def write_pair(self, folder: Path, model: torch.nn.Module, kind: str | Callable[[str], str] = "F32") -> Path:
        """The tower as an mmproj file, and a text encoder of one tensor beside it."""
        parts = self.parts(dict(model.state_dict()))
        named = {name: tensor for name, tensor in parts.items() if name.startswith(("v.", "mm."))}
        named |= convert.gguf_names({name: parts[name] for name in parts.keys() - named.keys()}, "clip", LAYERS)
        metadata = {
            "general.type": "mmproj",
            "clip.projector_type": self.projector,
            "clip.vision.projection_dim": TEXT_HIDDEN,
        }
        convert.write(folder / "mmproj-Model-f16.gguf", "clip", named, metadata, kind)
        text = {f"{self.architecture}.embedding_length": TEXT_HIDDEN}
        tensors = {"token_embd.weight": torch.zeros(8, TEXT_HIDDEN)}
        return convert.write(folder / "Model-Q4_K_M.gguf", self.architecture, tensors, text)

    def class_names(self, state_dict: convert.Tensors) -> convert.Tensors:
        renamed = {}
        for name, tensor in state_dict.items():
            for ours, theirs in self.prefixes.items():
                if name.startswith(ours):
                    renamed[theirs + name.removeprefix(ours)] = tensor
        return renamed


TOWERS = [
    Tower("qwen2vl_merger", qwen2, qwen2_parts, see_qwen, "qwen2vl", {"visual.": ""}),
    Tower("qwen2.5vl_merger", qwen25, qwen2_parts, see_qwen, "qwen2vl", {"visual.": ""}),
    Tower("qwen3vl_merger", qwen3, qwen3_parts, see_qwen, "qwen3vl", {"model.visual.": ""}),
    Tower("gemma3", gemma3, gemma3_parts, see_gemma, "gemma3",
          {"vision_model.": "model.vision_tower.", "multi_modal_projector.": "model.multi_modal_projector."}),
]  # fmt: skip


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.projector)
def test_a_vision_tower_of_the_gguf_file_sees_what_the_original_sees(tmp_path: Path, tower: Tower) -> None:
    original = tower.made(seed=1)
    encoder = load_text_encoder(tower.write_pair(tmp_path, original))
    assert encoder.unmapped == ()
    assert encoder.projector == read_header(tmp_path / "mmproj-Model-f16.gguf")
    tensors = tower.class_names(encoder.state_dict)
    again = tower.made(seed=2)
    before = tower.see(again)
    result = again.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    assert all("language_model" in key or key == "lm_head.weight" for key in result.missing_keys)
    assert torch.equal(tower.see(again), tower.see(original))
    assert not torch.equal(before, tower.see(original))


def attention_as(kind: str, name: str) -> str:
    return kind if ".attn_" in name else "F32"


@pytest.mark.parametrize("tower", TOWERS[:2], ids=lambda tower: tower.projector)
def test_a_split_qkv_of_one_type_is_joined_without_being_dequantised(tmp_path: Path, tower: Tower) -> None:
    original = tower.made(seed=1)
    for kind, made_as in (("Q8_0", PackedTensor), ("F16", torch.Tensor)):
        path = tower.write_pair(tmp_path, original, functools.partial(attention_as, kind))
        joined = load_text_encoder(path).state_dict["visual.blocks.0.attn.qkv.weight"]
        assert joined.shape == (3 * HIDDEN, HIDDEN)
        assert type(joined) is made_as
        exact = original.state_dict()["blocks.0.attn.qkv.weight"]
        dense = joined.dequantize(torch.float32) if isinstance(joined, PackedTensor) else joined.float()
        assert torch.allclose(dense, exact, atol=0.01)


def test_a_split_qkv_of_several_types_is_joined_as_weights() -> None:
    kind = type_by_name("Q8_0")
    packed = PackedTensor(torch.zeros(32 * 34, dtype=torch.uint8), kind, (32, 32), dtype=torch.float32)
    parts = {"v.blk.0.attn_q.weight": packed, "v.blk.0.attn_k.weight": torch.ones(32, 32)}
    whole = reassemble(parts | {"v.blk.0.attn_v.weight": packed}, VISION_COMPONENTS["qwen2vl_merger"])
    assert whole["v.blk.0.attn_qkv.weight"].tolist() == [[0.0] * 32] * 32 + [[1.0] * 32] * 32 + [[0.0] * 32] * 32


def test_a_part_of_qkv_that_is_missing_is_named() -> None:
    parts = {"v.blk.5.attn_q.bias": torch.zeros(4), "v.blk.5.attn_v.bias": torch.zeros(4)}
    with pytest.raises(GgufKeyError, match=r"tensor 'v.blk.5.attn_q.bias': stands without v.blk.5.attn_k.bias"):
        reassemble(parts, VISION_COMPONENTS["qwen2.5vl_merger"])


def test_the_later_half_of_a_patch_convolution_without_the_earlier_is_refused() -> None:
    parts = {"v.patch_embd.weight.1": torch.zeros(4, 3, 2, 2)}
    with pytest.raises(GgufKeyError, match=r"tensor 'v.patch_embd.weight.1': stands without v.patch_embd.weight"):
        reassemble(parts, VISION_COMPONENTS["qwen2vl_merger"])


def test_halves_of_a_patch_convolution_that_differ_are_refused() -> None:
    parts = {"v.patch_embd.weight": torch.zeros(4, 3, 2, 2), "v.patch_embd.weight.1": torch.zeros(4, 3, 2, 4)}
    with pytest.raises(GgufKeyError, match=r"'v.patch_embd.weight.1': of shape \(4, 3, 2, 4\), where .* has"):
        reassemble(parts, VISION_COMPONENTS["qwen2vl_merger"])


def test_the_swapped_mlp_of_early_converters_is_swapped_back() -> None:
    up, down = torch.full((96, 32), 1.0), torch.full((32, 96), 2.0)
    norm = {"v.blk.0.ln1.weight": torch.zeros(32)}
    biases = {"v.blk.0.ffn_up.bias": torch.zeros(96), "v.blk.0.ffn_down.bias": torch.zeros(32)}
    right = norm | {"v.blk.0.ffn_up.weight": up, "v.blk.0.ffn_down.weight": down} | biases
    swapped = norm | {
        "v.blk.0.ffn_up.weight": down,
        "v.blk.0.ffn_down.weight": up,
        "v.blk.0.ffn_up.bias": biases["v.blk.0.ffn_down.bias"],
        "v.blk.0.ffn_down.bias": biases["v.blk.0.ffn_up.bias"],
    }
    for stored in (right, swapped):
        whole = reassemble(stored, VISION_COMPONENTS["gemma3"])
        assert all(whole[name] is right[name] for name in right)
    del swapped["v.blk.0.ffn_down.bias"]
    with pytest.raises(GgufKeyError, match=r"'v.blk.0.ffn_up.bias': stands without v.blk.0.ffn_down.bias"):
        reassemble(swapped, VISION_COMPONENTS["gemma3"])


@pytest.mark.parametrize("key", ["clip.projector_type", "clip.vision.projector_type"])
def test_the_projector_is_read_from_either_key(tmp_path: Path, key: str) -> None:
    path = convert.write(tmp_path / "p.gguf", "clip", {"v.x": torch.zeros(1)}, {key: "gemma3"})
    assert vision_component_of(read_header(path)).name == "gemma3"


def test_a_projector_that_says_nothing_is_no_projector_of_a_known_kind(tmp_path: Path) -> None:
    path = convert.write(tmp_path / "p.gguf", "clip", {"v.x": torch.zeros(1)}, {})
    with pytest.raises(GgufKeyError, match="no vision tower is known with the projector None"):
        vision_component_of(read_header(path))


def test_an_unknown_projector_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = convert.write(tmp_path / "p.gguf", "clip", {"v.x": torch.zeros(1)}, {"clip.projector_type": "resampler"})
    with pytest.raises(GgufKeyError, match=r"projector 'resampler'; known are qwen2vl_merger, .*mmproj=None"):
        vision_component_of(read_header(path))
