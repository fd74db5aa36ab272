"""Shared memory: tied parameters, modules at two paths, views, and layers that torch stores in several modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from discovery_testing import Block, Chain, blocks, names_in, paths
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from block_discovery import InvalidTensorError, ModelWithoutParametersError, UninitializedModelError, discover


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tied_parameter_is_charged_once_to_the_rest(device: str) -> None:
    model = Chain(embed=nn.Embedding(100, 8), layers=blocks(3), head=nn.Linear(8, 100, bias=False)).to(device)
    before = discover(model).size_bytes
    model.head.weight = model.embed.weight
    tree = discover(model)
    assert tree.tied == (("embed.weight", "head.weight"),)
    assert names_in(tree, "") == ["embed.weight"]
    assert tree.size_bytes == before - 100 * 8 * 4


def test_equal_shapes_on_the_meta_device_are_not_tied() -> None:
    assert discover(Chain(layers=blocks(5)).to("meta")).tied == ()


def test_a_tensor_tied_inside_one_block_is_still_resident() -> None:
    model = Chain(layers=blocks(4))
    model.layers[1].mix[1].weight = model.layers[1].mix[0].weight
    tree = discover(model)
    assert tree.tied == (("layers.1.mix.0.weight", "layers.1.mix.1.weight"),)
    assert "layers.1.mix.0.weight" not in names_in(tree, "layers.1")


def test_disjoint_views_of_one_buffer_are_not_tied() -> None:
    model = Chain(layers=blocks(3))
    expected = discover(model)
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
    offset = 0
    for parameter in model.parameters():
        parameter.data = flat[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    assert discover(model) == expected


def test_overlapping_views_are_tied_and_the_largest_is_charged() -> None:
    model = Chain(layers=blocks(3))
    table = torch.zeros(10, 4)
    model.register_buffer("head", table[1:3])
    model.register_buffer("whole", table)
    model.register_buffer("tail", table[8:])
    tree = discover(model)
    assert tree.tied == (("head", "whole", "tail"),)
    assert names_in(tree, "") == ["whole"]


def test_strided_views_that_interleave_count_as_shared() -> None:
    model = Chain(layers=blocks(3))
    table = torch.zeros(8, 2)
    model.register_buffer("even", table[:, 0])
    model.register_buffer("odd", table[:, 1])
    assert discover(model).tied == (("even", "odd"),)


def test_expanded_and_empty_tensors_are_charged_without_being_tied() -> None:
    model = Chain(layers=blocks(3))
    model.register_buffer("ids", torch.arange(4).expand(3, 4))
    model.register_buffer("nothing", torch.zeros(0))
    model.register_buffer("nothing_else", torch.zeros(0))
    tree = discover(model)
    assert tree.tied == ()
    assert names_in(tree, "") == ["ids", "nothing", "nothing_else"]


def test_empty_views_of_one_buffer_share_nothing() -> None:
    model = Chain(layers=blocks(3))
    table = torch.zeros(3, 4)
    model.register_buffer("left", table[:, :0])
    model.register_buffer("right", table[:, :0])
    assert discover(model).tied == ()


def test_the_rest_stands_in_the_order_of_the_model() -> None:
    head = nn.Linear(64, 20, bias=False)
    model = Chain(embed=nn.Embedding(20, 64), norm=nn.LayerNorm(2), layers=blocks(3, 64), head=head)
    model.head.weight = model.embed.weight
    assert names_in(discover(model), "") == ["embed.weight", "norm.weight", "norm.bias"]


def test_a_block_listed_several_times_is_one_unit() -> None:
    block = Block()
    model = Chain(first=nn.Linear(8, 8), layers=nn.ModuleList([block, block, block]))
    tree = discover(model)
    assert paths(tree) == ["first", "layers.0"]
    assert tree.tied == ()


def test_a_layer_used_by_two_blocks_is_resident() -> None:
    model = Chain(layers=blocks(4))
    model.layers[2].mix = model.layers[0].mix
    tree = discover(model)
    assert ("layers.0.mix.0.weight", "layers.2.mix.0.weight") in tree.tied
    assert all(name.startswith("layers.0.mix.") for name in names_in(tree, ""))
    assert len(names_in(tree, "")) == 4
    assert not any(".mix." in name for path in ("layers.0", "layers.2") for name in names_in(tree, path))


def test_a_layer_registered_twice_in_one_block_stays_there() -> None:
    model = Chain(layers=blocks(4))
    model.layers[1].again = model.layers[1].mix
    tree = discover(model)
    assert tree.tied == ()
    assert tree.rest is None
    assert "layers.1.mix.0.weight" in names_in(tree, "layers.1")


def test_a_shared_embedding_is_a_unit_of_its_own() -> None:
    shared = nn.Embedding(100, 8)
    model = Chain(shared=shared, encoder=Chain(embed=shared, layers=blocks(3)))
    tree = discover(model)
    assert paths(tree, "leaf") == ["shared"]
    assert tree.tied == ()


def test_a_child_that_refers_to_its_parent_does_not_loop() -> None:
    model = Chain(layers=blocks(3))
    model.layers[0].parent = model
    assert paths(discover(model)) == ["layers.0", "layers.1", "layers.2"]


def test_a_parametrised_weight_belongs_to_its_layer() -> None:
    model = Chain(layers=nn.ModuleList(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(3)))
    tree = discover(model)
    assert [unit.kind for unit in tree.units] == ["leaf", "leaf", "leaf"]
    assert set(names_in(tree, "layers.0")) == {
        "layers.0.bias",
        "layers.0.parametrizations.weight.original0",
        "layers.0.parametrizations.weight.original1",
    }


def test_attention_is_one_layer_because_it_never_calls_its_output_projection() -> None:
    attention = nn.MultiheadAttention(16, 2)
    tree = discover(Chain(attention=attention, other=nn.Linear(4, 4)))
    assert paths(tree) == ["attention", "other"]
    assert "attention.out_proj.weight" in names_in(tree, "attention")
    separate = nn.MultiheadAttention(16, 2, kdim=8, vdim=8)
    assert "attention.out_proj.weight" in names_in(discover(Chain(attention=separate)), "attention")


def test_a_parameter_list_belongs_to_the_layer_that_reads_it() -> None:
    layers = nn.ModuleList(Chain(mix=Block()) for _ in range(3))
    for layer in layers:
        layer.add_module("scales", nn.ParameterList([nn.Parameter(torch.zeros(8))]))
    tree = discover(Chain(layers=layers))
    assert paths(tree) == ["layers.0", "layers.1", "layers.2"]
    assert "layers.0.scales.0" in names_in(tree, "layers.0")


class Packed(torch.Tensor):
    """A wrapper subclass, as quantised weights are: a logical shape over packed bytes and scales."""

    packed: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, packed: torch.Tensor, scale: torch.Tensor) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, (packed.shape[0], 2 * packed.shape[1]), dtype=torch.float32)

    def __init__(self, packed: torch.Tensor, scale: torch.Tensor) -> None:
        self.packed, self.scale = packed, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["packed", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return cls(args[0].packed, args[0].scale)
        raise TypeError(f"{func} is not supported")


def packed_model() -> Chain:
    model = Chain(layers=blocks(3))
    for block in model.layers:
        weight = Packed(torch.zeros(8, 4, dtype=torch.uint8), torch.zeros(8))
        block.mix[0].weight = nn.Parameter(weight, requires_grad=False)
    return model


def test_a_quantised_weight_has_its_logical_shape_and_its_packed_bytes() -> None:
    unit = discover(packed_model()).units[0]
    (weight,) = (tensor for tensor in unit.tensors if tensor.name == "layers.0.mix.0.weight")
    assert weight.shape == (8, 8)
    assert weight.size_bytes == 8 * 4 + 8 * 4


def test_quantised_weights_that_share_a_part_are_tied() -> None:
    model = packed_model()
    first, second = model.layers[0].mix[0].weight, model.layers[1].mix[0].weight
    second.scale = first.scale
    second.packed = first.packed
    model.layers[2].mix[0].weight.scale = second.scale
    names = tuple(f"layers.{index}.mix.0.weight" for index in range(3))
    assert discover(model).tied == (names,)


def test_a_model_without_tensors_is_refused() -> None:
    with pytest.raises(ModelWithoutParametersError, match=r"model Sequential: has no parameters.*; build its layers"):
        discover(nn.Sequential(nn.ReLU(), nn.Sequential()))


@pytest.mark.parametrize("sparse", [lambda t: t.to_sparse(), lambda t: t.to_sparse_csr()], ids=["coo", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_tensor_is_refused_with_the_remedy(sparse: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = Chain(layers=blocks(3))
    model.register_buffer("mask", sparse(torch.eye(3)))
    with pytest.raises(InvalidTensorError, match=r"tensor 'mask': is stored as torch.sparse_.*; make it dense"):
        discover(model)


def test_views_in_two_places_of_one_buffer_are_two_groups() -> None:
    model = Chain(layers=blocks(3))
    table = torch.zeros(90)
    spans = {"a": (0, 20), "b": (10, 30), "c": (40, 60), "d": (50, 70), "e": (55, 57), "f": (80, 90)}
    for name, (start, stop) in spans.items():
        model.register_buffer(name, table[start:stop])
    tree = discover(model)
    assert tree.tied == (("a", "b"), ("c", "d", "e"))
    assert names_in(tree, "") == ["a", "c", "f"]


@given(spans=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_views_are_tied_exactly_where_bytes_are_used_twice(spans: list[tuple[int, int]]) -> None:
    table = torch.zeros(40)
    model = nn.Module()
    for index, (start, size) in enumerate(spans):
        model.register_buffer(f"v{index}", table[start : start + size])
    tree = discover(model)
    groups = {name: group for group in tree.tied for name in group}
    for one, (start, size) in enumerate(spans):
        overlapping = {f"v{other}" for other, (at, more) in enumerate(spans) if start < at + more and at < start + size}
        if len(overlapping) == 1:
            assert f"v{one}" not in groups
        else:
            assert overlapping <= set(groups[f"v{one}"])
    charged = {tensor.name for unit in tree.units for tensor in unit.tensors}
    assert len(charged) == len(tree.tied) + sum(f"v{index}" not in groups for index in range(len(spans)))


def test_a_unit_whose_every_tensor_is_used_elsewhere_is_none() -> None:
    model = Chain(layers=blocks(4))
    first = model.layers[0]
    first.norm = nn.Identity()
    model.add_module("spare", nn.Sequential(first.mix, first.mlp))
    tree = discover(model)
    assert sum(unit.size_bytes for unit in tree.units) == sum(p.nbytes for p in model.parameters())
    assert len([t for unit in tree.units for t in unit.tensors]) == len(list(model.parameters()))
    assert "layers.0" not in paths(tree)


def test_a_lazy_model_is_refused_with_the_remedy() -> None:
    with pytest.raises(UninitializedModelError, match=r"tensor '1\.weight': has no shape yet; run one forward"):
        discover(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))
