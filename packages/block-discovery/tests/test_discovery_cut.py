"""Each rule of the cut, on the smallest model that shows it."""

from __future__ import annotations

import torch
from discovery_testing import Block, Chain, Resnet, blocks, names_in, paths
from torch import nn

from block_discovery import discover


def test_children_of_a_list_are_blocks_and_the_layers_around_them_leaves() -> None:
    tree = discover(Chain(embed=nn.Linear(8, 8), layers=blocks(4), head=nn.Linear(8, 8)))
    assert paths(tree, "block") == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert paths(tree, "leaf") == ["embed", "head"]
    assert tree.rest is None


def test_lists_that_are_not_called_are_never_units_however_nested() -> None:
    nested = nn.ModuleList([blocks(2), nn.ModuleList([blocks(2)])])
    assert paths(discover(Chain(down=nested))) == ["down.0.0", "down.0.1", "down.1.0.0", "down.1.0.1"]


def test_a_list_in_a_dictionary_of_lists_is_cut_too() -> None:
    model = Chain(towers=nn.ModuleDict({"image": blocks(2), "text": blocks(2)}))
    assert paths(discover(model)) == ["towers.image.0", "towers.image.1", "towers.text.0", "towers.text.1"]


def test_small_leaves_and_direct_parameters_stay_in_the_rest() -> None:
    model = Chain(layers=blocks(3, 64), norm=nn.LayerNorm(2))
    model.register_parameter("position", nn.Parameter(torch.zeros(2)))
    tree = discover(model)
    assert names_in(tree, "") == ["position", "norm.weight", "norm.bias"]
    assert tree.units[-1] is tree.rest


def test_a_leaf_just_at_half_a_percent_is_a_unit() -> None:
    sizes = nn.ModuleList([nn.Linear(199, 500, bias=False)])
    at_limit = Chain(big=sizes, small=nn.Linear(500, 1, bias=False))
    assert paths(discover(at_limit)) == ["big.0", "small"]
    below = Chain(big=sizes, small=nn.Linear(499, 1, bias=False))
    assert paths(discover(below)) == ["big.0"]


def test_numbered_siblings_that_are_alike_are_blocks() -> None:
    middle = Chain(block_1=Block(), attn_1=nn.Linear(8, 8), block_2=Block())
    tree = discover(Chain(middle=middle, layers=blocks(3)))
    assert paths(tree, "block") == ["middle.block_1", "middle.block_2", "layers.0", "layers.1", "layers.2"]
    assert {unit.group for unit in tree.units if unit.path.startswith("middle.block")} == {"middle"}


def test_numbered_siblings_of_different_kinds_are_no_blocks() -> None:
    fusion = Chain(part_1=Block(), part_2=nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)))
    tree = discover(Chain(layers=blocks(20), fusion=fusion))
    assert [unit.path for unit in tree.units if unit.kind == "leaf"] == ["fusion"]


class Stage(nn.Module):
    """Blocks of one width behind a change of width, as an autoencoder's down_blocks are."""

    def __init__(self, width_in: int, width: int, count: int = 2) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width_in if i == 0 else width, width) for i in range(count))
        self.downsample = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        out: torch.Tensor = self.downsample(x)
        return out


def test_stages_are_opened_down_to_their_blocks() -> None:
    model = Chain(down=nn.ModuleList([Stage(8, 16), Stage(16, 24), Stage(24, 32)]))
    expected = [f"down.{i}.{part}" for i in range(3) for part in ("resnets.0", "resnets.1", "downsample")]
    assert paths(discover(model)) == expected


def test_a_tiny_stage_is_not_worth_opening() -> None:
    model = Chain(down=nn.ModuleList([Stage(2, 2), Stage(64, 64), Stage(64, 96)]))
    found = paths(discover(model))
    assert found[0] == "down.0"
    assert "down.1.resnets.0" in found


class Experts(nn.Module):
    """A layer whose feed-forward is a list of experts."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(8, count)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.experts[0](x)
        return out


def test_experts_stay_in_their_block_whatever_its_size() -> None:
    for count in (2, 20):
        model = Chain(layers=nn.ModuleList(Experts() for _ in range(count)))
        assert paths(discover(model)) == [f"layers.{index}" for index in range(count)]


def test_blocks_that_recur_are_not_mistaken_for_stages() -> None:
    layers = nn.ModuleList(Chain(mixers=blocks(2), out=nn.Linear(8, 8)) for _ in range(10))
    assert paths(discover(Chain(layers=layers))) == [f"layers.{index}" for index in range(10)]


def test_a_block_above_the_limit_is_opened_when_it_consists_of_blocks() -> None:
    deep = Chain(proj_in=nn.Linear(8, 8), transformer_blocks=blocks(10))
    shallow = [Chain(proj_in=nn.Linear(8, 8), mix=nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 8))) for _ in range(2)]
    model = Chain(input_blocks=nn.ModuleList([*shallow, deep]))
    found = paths(discover(model))
    assert found[:3] == ["input_blocks.0", "input_blocks.1", "input_blocks.2.proj_in"]
    assert found[3:] == [f"input_blocks.2.transformer_blocks.{index}" for index in range(10)]


def test_the_limit_decides_whether_a_block_is_opened() -> None:
    members = [
        Chain(proj=nn.Linear(8, 8), inner=Chain(norm=nn.LayerNorm(8), list=blocks(count))) for count in (1, 2, 3)
    ]
    model = Chain(parts=nn.ModuleList(members))
    assert paths(discover(model, max_unit_fraction=1.0)) == ["parts.0", "parts.1", "parts.2"]
    assert paths(discover(model, max_unit_fraction=0.4)) == [
        *("parts.0", "parts.1", "parts.2.proj"),
        *("parts.2.inner.norm", "parts.2.inner.list.0", "parts.2.inner.list.1", "parts.2.inner.list.2"),
    ]


def test_a_short_mixed_sequence_is_one_unit() -> None:
    middle = nn.Sequential(Resnet(8, 8), Chain(proj=nn.Linear(8, 8), inner=blocks(1)), Resnet(8, 8))
    tree = discover(Chain(layers=blocks(20), middle=middle))
    assert paths(tree)[-1] == "middle"
    assert tree.units[-1].kind == "block"


def test_a_small_embedder_is_one_leaf_and_a_large_one_is_divided() -> None:
    def embedder(rows: int) -> nn.Module:
        return Chain(words=nn.Embedding(rows, 8), positions=nn.Embedding(16, 8), norm=nn.LayerNorm(8))

    small = discover(Chain(embeddings=embedder(50), layers=blocks(20)))
    assert paths(small, "leaf") == ["embeddings"]
    assert not small.units[0].is_embedding
    large = discover(Chain(embeddings=embedder(5000), layers=blocks(20)))
    assert paths(large, "leaf") == ["embeddings.words"]
    assert large.units[0].is_embedding
    assert names_in(large, "") == ["embeddings.positions.weight", "embeddings.norm.weight", "embeddings.norm.bias"]


def test_a_list_that_repeats_a_layer_is_cut_even_where_somebody_calls_it() -> None:
    projections = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    mixed = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    found = paths(discover(Chain(layers=blocks(40, 16), projections=projections, mixed=mixed)), "leaf")
    assert found == [f"projections.{index}" for index in range(6)] + ["mixed"]


def test_wrappers_around_a_model_or_a_block_do_not_hide_it() -> None:
    wrapped = nn.ModuleList(Chain(block=Block()) for _ in range(3))
    model = Chain(model=Chain(model=Chain(layers=wrapped)))
    assert paths(discover(model)) == [f"model.model.layers.{index}" for index in range(3)]


def test_a_bare_module_as_container_is_opened() -> None:
    stages = []
    for _ in range(3):
        stage = nn.Module()
        stage.block = blocks(2)
        stage.scale = nn.Linear(8, 8)
        stages.append(stage)
    expected = [f"up.{i}.{part}" for i in range(3) for part in ("block.0", "block.1", "scale")]
    assert paths(discover(Chain(up=nn.ModuleList(stages)))) == expected


def test_buffers_are_charged_with_their_role() -> None:
    model = Chain(layers=nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3)))
    model.layers[0].register_buffer("mask", torch.zeros(3, dtype=torch.int64), persistent=False)
    unit = discover(model).units[0]
    roles = {tensor.name: tensor.role for tensor in unit.tensors}
    assert roles["layers.0.mask"] == roles["layers.0.1.running_mean"] == "buffer"
    assert roles["layers.0.0.weight"] == "parameter"
    assert {tensor.name: tensor.dtype for tensor in unit.tensors}["layers.0.mask"] == "int64"


def test_a_single_layer_has_nothing_to_move() -> None:
    tree = discover(nn.Linear(4, 4))
    assert [(unit.kind, unit.size_bytes) for unit in tree.units] == [("rest", 80)]


def test_a_short_mixed_list_that_nobody_can_call_is_opened() -> None:
    middle = nn.ModuleList([Resnet(8, 8), Chain(proj=nn.Linear(8, 8), inner=Block()), Resnet(8, 8)])
    found = paths(discover(Chain(layers=blocks(20), middle=middle)))
    assert found[-3:] == ["middle.0", "middle.1", "middle.2"]


def test_a_single_numbered_child_is_no_list() -> None:
    fusion = Chain(attention_1=Block(), out=nn.Linear(8, 8))
    tree = discover(Chain(layers=blocks(20), fusion=fusion))
    assert paths(tree, "leaf") == ["fusion"]


def test_members_without_bytes_are_no_units() -> None:
    empty = nn.Sequential(nn.LayerNorm(0, bias=False), nn.LayerNorm(0, bias=False))
    tree = discover(Chain(layers=nn.ModuleList([Block(), empty, Block()])))
    assert paths(tree) == ["layers.0", "layers.2"]
    assert names_in(tree, "") == ["layers.1.0.weight", "layers.1.1.weight"]
