"""Discovery from names and sizes: what it must agree on with the module, and what bad names and sizes say."""

from __future__ import annotations

import pytest
import torch
from discovery_testing import Block, Chain, blocks, names_in, paths, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from block_discovery import InvalidTensorError, ModelWithoutParametersError, discover, discover_names


def model() -> Chain:
    return Chain(
        embed=nn.Embedding(64, 8),
        encoder=Chain(layers=blocks(3), norm=nn.LayerNorm(8)),
        layers=blocks(12),
        head=Block(),
    )


def test_names_give_the_units_of_the_module() -> None:
    tree, from_names = discover(model()), discover_names(sizes_of(model().state_dict()))
    assert paths(from_names) == paths(tree)
    assert [unit.tensors for unit in from_names.units] == [unit.tensors for unit in tree.units]
    assert {unit.class_name for unit in from_names.units} == {""}


@given(order=st.permutations(sorted(model().state_dict())))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_names_changes_no_unit(order: list[str]) -> None:
    state = model().state_dict()
    shuffled = discover_names(sizes_of({name: state[name] for name in order}))
    assert sorted(paths(shuffled)) == sorted(paths(discover_names(sizes_of(state))))


def test_numbered_blocks_come_in_the_order_of_their_numbers() -> None:
    names = sorted(f"blocks.{index}.{part}.weight" for index in range(12) for part in ("mix", "mlp"))
    tree = discover_names(dict.fromkeys(names, ((4, 4), "F32")))
    assert paths(tree) == [f"blocks.{index}" for index in range(12)]


@pytest.mark.parametrize(
    ("dtype", "size_bytes", "name"),
    [
        (torch.bfloat16, 32, "bfloat16"),
        ("bfloat16", 32, "bfloat16"),
        ("torch.bfloat16", 32, "bfloat16"),
        ("BF16", 32, "bfloat16"),
        ("F8_E4M3", 16, "float8_e4m3fn"),
        ("F4", 8, "float4_e2m1fn_x2"),
        ("F6_E2M3", 12, None),
        (9, 9, None),
    ],
)
def test_sizes_follow_from_shape_and_element_type(
    dtype: torch.dtype | str | int, size_bytes: int, name: str | None
) -> None:
    (unit,) = discover_names({"weight": ((4, 4), dtype)}).units
    (tensor,) = unit.tensors
    assert (tensor.size_bytes, tensor.dtype, tensor.shape) == (size_bytes, name, (4, 4))


def test_packed_sizes_decide_the_cut() -> None:
    sizes = {f"blk.{i}.{part}.weight": ((64, 64), 2304) for i in range(4) for part in ("q", "k")}
    sizes["token_embd.weight"] = ((640, 64), 23040)
    tree = discover_names(sizes)
    assert tree.size_bytes == 4 * 2 * 2304 + 23040
    assert paths(tree) == ["blk.0", "blk.1", "blk.2", "blk.3", "token_embd"]
    assert [unit.path for unit in tree.units if unit.is_embedding] == ["token_embd"]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embed_tokens.weight", (32000, 4096), True),
        ("text.word_embeddings.weight", (30522, 768), True),
        ("x_embedder.weight", (3072, 64), True),
        ("context_embedder.weight", (3072, 4096), False),
        ("clip_embedder.weight", (6144, 4096), False),
        ("head.weight", (32000, 4096), False),
        ("embed.weight", (8, 3, 2, 2), False),
        ("embed.table", (32000, 4096), False),
    ],
)
def test_a_table_is_recognised_by_its_name_and_its_shape(name: str, shape: tuple[int, ...], expected: bool) -> None:
    others = {f"layers.{index}.{part}.weight": ((64, 64), "F32") for index in range(3) for part in ("a", "b")}
    tree = discover_names({**others, name: (shape, "F32")})
    assert any(unit.is_embedding for unit in tree.units) is expected


def test_an_embedding_with_a_bias_is_a_projection() -> None:
    sizes = {"time_embed.weight": ((400, 4), "F32"), "time_embed.bias": ((400,), "F32"), "out.weight": ((4, 4), "F32")}
    assert not any(unit.is_embedding for unit in discover_names(sizes).units)


def test_the_prefix_selects_a_model_and_is_cut_off() -> None:
    checkpoint = {
        **{f"model.diffusion_model.{name}": size for name, size in sizes_of(model().state_dict()).items()},
        **{f"first_stage_model.{name}": size for name, size in sizes_of(blocks(2).state_dict()).items()},
    }
    tree = discover_names(checkpoint, prefix="model.diffusion_model.")
    assert tree.units == discover_names(sizes_of(model().state_dict())).units
    assert tree.prefix == "model.diffusion_model."
    assert names_in(tree, "embed") == ["embed.weight"]


def test_a_prefix_that_does_not_occur_is_refused() -> None:
    with pytest.raises(ModelWithoutParametersError, match=r"no tensor name starts with 'vae\.'; pass a prefix"):
        discover_names({"a.weight": ((2,), "F32")}, prefix="vae.")
    with pytest.raises(ModelWithoutParametersError, match="names: no tensors"):
        discover_names({})


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((-1, 4), "F32", r"tensor 'a\.weight': has the shape \[-1, 4\]; sizes are 0 or more"),
        (
            (4,),
            "Q9_K",
            r"tensor 'a\.weight': has the unknown element type 'Q9_K'; name it as torch",
        ),
        ((4,), "nn", r"has the unknown element type 'nn'"),
        ((4,), -5, r"tensor 'a\.weight': has -5 bytes; a size is between 0 and"),
        ((2**40, 2**40), "F32", r"tensor 'a\.weight': has \d+ bytes; a size is between"),
        ((3,), "F4", r"tensor 'a\.weight': has 3 elements of F4, no whole number of bytes; .* size in bytes"),
        ((5, 1), "F6_E2M3", r"has 5 elements of F6_E2M3, no whole number of bytes"),
    ],
)
def test_an_impossible_tensor_is_refused(shape: tuple[int, ...], dtype: str | int, message: str) -> None:
    with pytest.raises(InvalidTensorError, match=message):
        discover_names({"a.weight": (shape, dtype)})


def test_a_name_of_a_thousand_components_is_refused() -> None:
    with pytest.raises(InvalidTensorError, match=r"more than 100 components .*; names are dotted module paths"):
        discover_names({".".join("a" * 1000): ((2,), "F32")})


@pytest.mark.parametrize("name", ["", ".", ".weight", "a.", "a..weight"])
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidTensorError, match=r"has an empty component in its name; names are dotted module paths"):
        discover_names({"b.weight": ((2,), "F32"), name: ((2,), "F32")})


def test_a_prefix_that_is_a_whole_name_leaves_none() -> None:
    with pytest.raises(InvalidTensorError, match=r"tensor '': has an empty component"):
        discover_names({"a.weight": ((2,), "F32"), "b.weight": ((2,), "F32")}, prefix="a.weight")


COMPONENTS = st.one_of(
    st.sampled_from(["0", "1", "10", "007", "٣", "a", "experts", "b_1", "b_2"]),
    st.text(st.characters(exclude_characters="."), min_size=1, max_size=4),
)


@given(
    names=st.dictionaries(
        st.lists(COMPONENTS, min_size=1, max_size=5).map(".".join), st.integers(0, 10**6), min_size=1, max_size=30
    )
)
@settings(max_examples=200, deadline=None)
def test_any_names_are_charged_exactly_once(names: dict[str, int]) -> None:
    tree = discover_names({name: ((), size) for name, size in names.items()})
    charged = {tensor.name: tensor.size_bytes for unit in tree.units for tensor in unit.tensors}
    assert charged == names
    assert sum(len(unit.tensors) for unit in tree.units) == len(names)


def test_without_a_prefix_what_all_names_share_is_cut_off() -> None:
    sizes = sizes_of(model().state_dict())
    below = {f"model.diffusion_model.{name}": size for name, size in sizes.items()}
    tree = discover_names(below, prefix=None)
    assert tree.prefix == "model.diffusion_model."
    assert tree.units == discover_names(sizes).units
    assert discover_names({**below, "vae.weight": ((4, 4), 64)}, prefix=None).prefix == ""
