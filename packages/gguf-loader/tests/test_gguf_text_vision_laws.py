"""What the converter takes apart, in any number and order, is put together as it was; names of any type pair up."""

from __future__ import annotations

import random

import pytest
import torch
from gguf_packing import packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gguf_loader import GGML_TYPES, PackedTensor
from gguf_loader.text._mmproj import model_name
from gguf_loader.text._vision import VISION_COMPONENTS, reassemble

QWEN = VISION_COMPONENTS["qwen3vl_merger"]


def taken_apart(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """As llama.cpp's converter writes it: q, k and v in files of their own, the patches of two frames apart."""
    parts: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        if ".attn_qkv." in name:
            thirds = torch.split(tensor, tensor.shape[0] // 3)
            parts |= {name.replace("qkv", letter): third for letter, third in zip("qkv", thirds, strict=True)}
        elif name == "v.patch_embd.weight":
            parts |= {name: tensor[:, :, 0], f"{name}.1": tensor[:, :, 1]}
        else:
            parts[name] = tensor
    return parts


@given(
    blocks=st.integers(1, 4),
    heads=st.integers(1, 3),
    name=st.sampled_from(["F32", "Q8_0", "Q4_0"]),
    biases=st.booleans(),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_parts_in_any_order_become_the_whole(
    blocks: int, heads: int, name: str, biases: bool, order: random.Random
) -> None:
    whole: dict[str, Tensor] = {"v.patch_embd.weight": torch.randn(8, 3, 2, 4, 4)}
    for index in range(blocks):
        size = 3 * 2 * heads
        weight = torch.randn(size, 32) if name == "F32" else packed(name, size, 32, seed=index)
        whole[f"v.blk.{index}.attn_qkv.weight"] = weight
        whole |= {f"v.blk.{index}.attn_qkv.bias": torch.randn(size)} if biases else {}
        whole[f"v.blk.{index}.ln1.weight"] = torch.ones(32)
    names = list(parts := taken_apart(whole))
    order.shuffle(names)
    found = reassemble({name: parts[name] for name in names}, QWEN)
    assert set(found) == set(whole)
    for key, tensor in whole.items():
        assert type(found[key]) is type(tensor)
        assert torch.equal(found[key], tensor)
    again = reassemble(found, QWEN)
    assert all(again[key] is found[key] for key in found)


@given(layers=st.sets(st.integers(0, 40), max_size=6), order=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_mergers_are_numbered_by_their_position_whatever_layers_they_belong_to(
    layers: set[int], order: random.Random
) -> None:
    parts = ("fc1", "norm")
    stored = {f"v.deepstack.{at}.{part}.weight": torch.tensor(float(at)) for at in layers for part in parts}
    names = list(stored)
    order.shuffle(names)
    found = reassemble({name: stored[name] for name in names}, QWEN)
    expected = {
        f"v.deepstack.{position}.{part}.weight": float(layer)
        for position, layer in enumerate(sorted(layers))
        for part in parts
    }
    assert {name: float(tensor) for name, tensor in found.items()} == expected


def test_packed_thirds_of_several_types_are_joined_as_weights() -> None:
    thirds = [packed(name, 4, 32, dtype=torch.float32) for name in ("Q8_0", "Q4_0", "Q8_0")]
    stored: dict[str, Tensor] = {}
    stored |= {f"v.blk.0.attn_{letter}.weight": one for letter, one in zip("qkv", thirds, strict=True)}
    joined = reassemble(stored, QWEN)["v.blk.0.attn_qkv.weight"]
    assert not isinstance(joined, PackedTensor)
    assert torch.equal(joined, torch.cat([one.dequantize() for one in thirds]))


WEIGHT_TYPES = [name for name in GGML_TYPES if name not in ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")]


@pytest.mark.parametrize("name", WEIGHT_TYPES)
@pytest.mark.parametrize("ending", ["", "_S", "_M", "_L", "_XL"])
def test_a_file_name_says_the_same_model_in_every_type(name: str, ending: str) -> None:
    ending = ending if "Q" in name and name.endswith("_K") else ""
    for spelled in (f"Sage-7B-{name}{ending}.gguf", f"sage_7b.{name.lower()}{ending.lower()}.gguf"):
        assert model_name(spelled) == "sage7b"
        assert model_name(f"mmproj-{spelled}") == "sage7b"


@given(words=st.lists(st.sampled_from(["Sage", "7B", "Instruct", "2.5", "VL"]), min_size=1, max_size=4))
def test_separators_and_case_say_nothing_of_a_model(words: list[str]) -> None:
    spelled = [separator.join(words) for separator in "-_."]
    names = {model_name(f"{name}.gguf") for one in spelled for name in (one, one.upper(), one.lower())}
    assert names == {"".join(words).replace(".", "").lower()}
