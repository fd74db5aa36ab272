"""Layers as the planner moves them: laws that hold for any names and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from block_discovery import BlockDiscoveryError, BlockTree
from comfy_nodes.host.placing._layers import Sizes, layer_tree

LINEAR = {"weight": ((64, 64), 8192), "bias": ((64,), 128)}


def named(layers: Mapping[str, Sizes]) -> Sizes:
    return {f"{layer}.{name}": size for layer, sizes in layers.items() for name, size in sizes.items()}


def stack(count: int = 4) -> Sizes:
    return named({f"blocks.{index}.{part}": LINEAR for index in range(count) for part in ("attn.q", "mlp.up")})


def movable(tree: BlockTree) -> set[str]:
    return {layer.name for unit in tree.units if unit.kind != "rest" for layer in unit.tensors}


def rest(tree: BlockTree) -> set[str]:
    return {layer.name for unit in tree.units if unit.kind == "rest" for layer in unit.tensors}


@st.composite
def models(draw: st.DrawFn) -> Sizes:
    """Blocks with layers, norms and parameters of their own, and a few layers around them."""
    sizes: dict[str, tuple[tuple[int, ...], int]] = {}
    for block in range(draw(st.integers(2, 5))):
        for layer in draw(st.lists(st.sampled_from(["q", "k", "up", "down"]), min_size=1, unique=True)):
            width = draw(st.integers(1, 64))
            sizes[f"blocks.{block}.{layer}.weight"] = ((width, width), width * width * 2)
            if draw(st.booleans()):
                sizes[f"blocks.{block}.{layer}.bias"] = ((width,), width * 2)
        if draw(st.booleans()):
            sizes[f"blocks.{block}.norm.weight"] = ((8,), 16)
        if draw(st.booleans()):
            sizes[f"blocks.{block}.modulation"] = ((1, 6, 8), 96)
    for name in draw(st.lists(st.sampled_from(["embed", "head", "time_in"]), unique=True)):
        sizes[f"{name}.weight"] = ((32, 32), 2048)
    return sizes


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "comfy_quant"])
def test_a_layer_moves_with_its_scales(scale: str) -> None:
    layers = {f"blocks.{index}.q": {**LINEAR, scale: ((64,), 256)} for index in range(3)}
    tree = layer_tree(named(layers), prefix="")
    assert movable(tree) == set(layers)


@given(models())
def test_every_byte_is_in_one_layer(sizes: Sizes) -> None:
    tree = layer_tree(sizes, prefix="")
    assert tree.size_bytes == sum(size for _, size in sizes.values())
    names = [layer.name for unit in tree.units for layer in unit.tensors]
    assert len(names) == len(set(names))


@given(models())
def test_what_moves_is_a_whole_layer_with_a_matrix(sizes: Sizes) -> None:
    for name in movable(layer_tree(sizes, prefix="")):
        own = {key for key in sizes if key.startswith(f"{name}.")}
        assert own <= {f"{name}.weight", f"{name}.bias"}
        assert len(sizes[f"{name}.weight"][0]) > 1


@given(models(), st.sampled_from(["", "model.diffusion_model."]))
def test_a_prefix_changes_nothing(sizes: Sizes, prefix: str) -> None:
    prefixed = {f"{prefix}{name}": size for name, size in sizes.items()}
    if prefix:
        prefixed["other.weight"] = ((4, 4), 32)
    assert layer_tree(prefixed, prefix=prefix).units == layer_tree(sizes, prefix="").units


@settings(deadline=None)
@given(models())
def test_what_cannot_be_cast_stays(sizes: Sizes) -> None:
    tree = layer_tree(sizes, prefix="", is_castable=lambda name: "blocks.0" not in name)
    assert not any("blocks.0." in name for name in movable(tree))
    assert tree.size_bytes == sum(size for _, size in sizes.values())


def test_norms_and_parameters_between_layers_stay() -> None:
    tree = layer_tree({**stack(), "blocks.0.norm.weight": ((64,), 128), "blocks.1.gate": ((1, 64), 128)}, prefix="")
    assert {"blocks.0.norm", "blocks.1"} <= rest(tree)
    assert "blocks.0.attn.q" in movable(tree)


def test_a_layer_with_layers_inside_stays() -> None:
    tree = layer_tree({**stack(), **named({"blocks.0.attn": LINEAR})}, prefix="")
    assert "blocks.0.attn" in rest(tree)
    assert "blocks.0.attn.q" in movable(tree)


def test_scales_move_with_their_layer() -> None:
    scaled = {"weight": ((64, 64), 4096), "weight_scale": ((), 4), "input_scale": ((), 4)}
    tree = layer_tree(named({f"blocks.{index}.q": scaled for index in range(3)}), prefix="")
    assert {layer.size_bytes for unit in tree.units for layer in unit.tensors} == {4104}


def test_a_layer_with_something_unknown_stays() -> None:
    odd = {"weight": ((64, 64), 4096), "codebook": ((16, 16), 512)}
    tree = layer_tree(named({f"blocks.{index}.q": odd for index in range(3)}), prefix="")
    assert movable(tree) == set()


def test_convolutions_move() -> None:
    convolution = {"weight": ((8, 8, 3, 3), math.prod((8, 8, 3, 3)) * 2), "bias": ((8,), 16)}
    tree = layer_tree(named({f"down.{index}.conv": convolution for index in range(3)}), prefix="")
    assert movable(tree) == {f"down.{index}.conv" for index in range(3)}


def test_a_prefix_that_does_not_occur_is_an_error() -> None:
    with pytest.raises(BlockDiscoveryError):
        layer_tree(stack(), prefix="nothing.")
