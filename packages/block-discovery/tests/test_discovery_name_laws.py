"""Laws of the cut from names and sizes: what may be changed about a checkpoint without changing its units."""

from __future__ import annotations

import json

import pytest
from discovery_testing import Layout, header_of, layouts, modules_with_tensors, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from block_discovery import BlockTree, discover_file, discover_names

Sizes = dict[str, tuple[tuple[int, ...], int]]
KNOWN = layouts()


def sizes_from(module: nn.Module) -> Sizes:
    return {name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in module.state_dict().items()}


checkpoints = modules_with_tensors.map(sizes_from).filter(bool)


def cut(tree: BlockTree) -> dict[str, tuple[str, str | None, bool, frozenset[str]]]:
    """What matters about the units of a tree, whatever their order."""
    return {
        unit.path: (unit.kind, unit.group, unit.is_embedding, frozenset(tensor.name for tensor in unit.tensors))
        for unit in tree.units
    }


@given(sizes=checkpoints, factor=st.sampled_from([2, 3, 1000, 2**20]))
@settings(max_examples=60, deadline=None)
def test_a_model_that_is_larger_throughout_is_cut_alike(sizes: Sizes, factor: int) -> None:
    larger = {name: (shape, size * factor) for name, (shape, size) in sizes.items()}
    assert cut(discover_names(larger)) == cut(discover_names(sizes))


@given(sizes=checkpoints, prefix=st.sampled_from(["model.", "model.diffusion_model.", "0.", "x.7.y."]))
@settings(max_examples=60, deadline=None)
def test_a_prefix_that_is_cut_off_leaves_the_model(sizes: Sizes, prefix: str) -> None:
    below = {f"{prefix}{name}": size for name, size in sizes.items()}
    stranger: Sizes = {"other.weight": ((4,), 16)}
    tree = discover_names(below | stranger, prefix=prefix)
    assert tree.units == discover_names(sizes).units
    assert tree.prefix == prefix


@given(sizes=checkpoints, data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_a_file_changes_no_unit(sizes: Sizes, data: st.DataObject) -> None:
    order = data.draw(st.permutations(sorted(sizes)))
    assert cut(discover_names({name: sizes[name] for name in order})) == cut(discover_names(sizes))


@given(sizes=checkpoints, fraction=st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_whatever_the_limit_each_tensor_is_charged_once(sizes: Sizes, fraction: float) -> None:
    tree = discover_names(sizes, max_unit_fraction=fraction)
    charged = [(tensor.name, tensor.size_bytes) for unit in tree.units for tensor in unit.tensors]
    assert sorted(charged) == sorted((name, size) for name, (_, size) in sizes.items())
    for unit in tree.units:
        assert all(tensor.name.startswith(f"{unit.path}.") for tensor in unit.tensors if unit.path)


@pytest.mark.parametrize("layout", KNOWN, ids=lambda layout: layout.name)
def test_a_smaller_limit_only_divides_the_units_of_a_known_model(layout: Layout) -> None:
    coarse: dict[str, str] = {}
    for fraction in (1.0, 0.125, 0.02):
        tree = discover_names(layout.sizes, max_unit_fraction=fraction)
        home = {tensor.name: unit.path for unit in tree.units for tensor in unit.tensors}
        for name, path in home.items():
            assert not path or not coarse.get(name) or path.startswith(coarse[name])
        coarse = home


@given(sizes=checkpoints.filter(lambda sizes: len(sizes) > 1), data=st.data())
@settings(max_examples=30, deadline=None)
def test_shards_give_the_tree_of_one_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: Sizes, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    bytes_of = {name: size for name, (_, size) in sizes.items()}
    whole = write_safetensors(folder / "whole.safetensors", header_of(bytes_of))
    shard_of = {name: f"part-{data.draw(st.integers(0, 2))}.safetensors" for name in bytes_of}
    for shard in set(shard_of.values()):
        part = {name: size for name, size in bytes_of.items() if shard_of[name] == shard}
        write_safetensors(folder / shard, header_of(part))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shard_of}))
    assert cut(discover_file(index, prefix="")) == cut(discover_file(whole, prefix=""))
