"""Sharded checkpoints, and trees straight from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from discovery_testing import blocks, header_of, paths, write_safetensors
from safetensors.torch import save_file
from torch import nn

from block_discovery import (
    HeaderError,
    ModelWithoutParametersError,
    discover,
    discover_file,
    read_safetensors_header,
    read_safetensors_index,
)

SHARDS = {"m-1.safetensors": {"layers.0.weight": 40, "layers.1.weight": 40}, "m-2.safetensors": {"norm.weight": 8}}


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, int]], **index: Any) -> Path:
    """Shards of byte tensors with these sizes, and their index; `index` replaces fields of it."""
    for shard, sizes in shards.items():
        header = {"__metadata__": {"format": "pt", "shard": shard}, **header_of(sizes)}
        write_safetensors(folder / shard, header, sum(sizes.values()))
    weight_map = {name: shard for shard, sizes in shards.items() for name in sizes}
    path = folder / "m.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map, **index}))
    return path


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    header = read_safetensors_index(write_sharded(tmp_path, SHARDS))
    assert {name: info.size_bytes for name, info in header.tensors.items()} == {
        "layers.0.weight": 40,
        "layers.1.weight": 40,
        "norm.weight": 8,
    }
    assert (header.data_bytes, header.missing_bytes) == (88, 0)
    assert header.metadata == {"format": "pt"}
    assert header.path.name == "m.safetensors.index.json"


def test_missing_weights_of_all_shards_are_counted(tmp_path: Path) -> None:
    path = write_sharded(tmp_path, SHARDS)
    write_safetensors(tmp_path / "m-1.safetensors", header_of(SHARDS["m-1.safetensors"]), 10)
    assert read_safetensors_index(path).missing_bytes == 70


INDEX_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no map": (
        {"weight_map": None},
        r"there is no weight_map that maps tensors to files; pass the \.safetensors\.index",
    ),
    "an empty map": ({"weight_map": {}}, r"there is no weight_map"),
    "a map of lists": (
        {"weight_map": {"a": ["m-1.safetensors"]}},
        r"tensor 'a': the file \['m-1.*'\] does not lie in the",
    ),
    "a folder above": (
        {"weight_map": {"a": "../m-1.safetensors"}},
        r"the file '\.\./m-1.*' does not lie in the folder",
    ),
    "another folder": ({"weight_map": {"a": "deep/m-1.safetensors"}}, r"does not lie in the folder"),
    "an absolute path": ({"weight_map": {"a": "/m-1.safetensors"}}, r"does not lie in the folder"),
    "a folder in Windows' way": ({"weight_map": {"a": "..\\m-1.safetensors"}}, r"does not lie in the folder"),
    "the folder itself": ({"weight_map": {"a": ".."}}, r"does not lie in the folder"),
    "an absent shard": (
        {"weight_map": {"a": "m-3.safetensors"}},
        r"the shard m-3\.safetensors does not exist; download every",
    ),
    "a tensor that no shard holds": (
        {
            "weight_map": {
                "layers.0.weight": "m-1.safetensors",
                "layers.1.weight": "m-1.safetensors",
                "b": "m-2.safetensors",
            }
        },
        r"tensor 'norm\.weight': m-2\.safetensors holds it, the index does not list it; .* download them together",
    ),
    "a tensor in another shard": (
        {"weight_map": {name: "m-1.safetensors" for sizes in SHARDS.values() for name in sizes}},
        r"tensor 'norm\.weight': the index lists it in m-1\.safetensors, which does not hold it",
    ),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path, fault: str) -> None:
    fields, message = INDEX_FAULTS[fault]
    path = write_sharded(tmp_path, SHARDS, **fields)
    with pytest.raises(HeaderError, match=message) as caught:
        read_safetensors_index(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = write_sharded(tmp_path, {"m-1.safetensors": {"a": 4, "b": 4}, "m-2.safetensors": {"a": 4}})
    with pytest.raises(
        HeaderError, match=r"tensor 'a': m-1\.safetensors holds it, the index lists it in m-2\.safetensors"
    ):
        read_safetensors_index(path)


@pytest.mark.parametrize("text", ["", "[1", '"text"', "[]", "\ufeff{}", "[" * 100000])
def test_an_index_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HeaderError, match=r"the index is not valid JSON|there is no weight_map"):
        read_safetensors_index(path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    path = write_sharded(tmp_path, SHARDS)
    (tmp_path / "m-2.safetensors").write_bytes(b"\x01")
    with pytest.raises(HeaderError, match=r"m-2\.safetensors at byte 0: the file has 1 bytes"):
        read_safetensors_index(path)


def test_a_file_gives_the_tree_of_the_model_that_was_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(64, 8), blocks(6), nn.Linear(8, 8))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    tree = discover_file(tmp_path / "m.safetensors")
    assert paths(tree) == paths(discover(model))
    assert tree.size_bytes == discover(model).size_bytes
    assert discover_file(str(tmp_path / "m.safetensors")) == tree


def test_an_index_gives_the_tree_of_all_shards(tmp_path: Path) -> None:
    sizes = {f"layers.{index}.{part}.weight": 64 for index in range(10) for part in ("a", "b")}
    names = list(sizes)
    shards = {"m-1.safetensors": dict.fromkeys(names[:13], 64), "m-2.safetensors": dict.fromkeys(names[13:], 64)}
    assert paths(discover_file(write_sharded(tmp_path, shards))) == [f"layers.{index}" for index in range(10)]


def test_the_limit_reaches_the_cut(tmp_path: Path) -> None:
    sizes = {
        f"parts.{i}.inner.list.{j}.{part}": 64 for i in range(2) for j in range(2) for part in ("a.weight", "b.weight")
    }
    sizes |= {f"parts.{i}.proj.weight": 8 for i in range(2)}
    path = write_safetensors(tmp_path / "m", header_of(sizes))
    assert paths(discover_file(path, max_unit_fraction=1.0)) == ["parts.0", "parts.1"]
    assert "parts.0.inner.list.1" in paths(discover_file(path, max_unit_fraction=0.2))


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["model.diffusion_model.blocks.0.a.weight", "model.diffusion_model.out.weight"], "model.diffusion_model."),
        (["blocks.0.a.weight", "blocks.0.b.weight"], ""),
        (["blocks.0.a.weight", "blocks.1.a.weight"], ""),
        (["net.blocks.0.a.weight", "net.blocks.1.a.weight"], "net."),
        (["net.blocks.3.inner.a.weight", "net.blocks.3.inner.b.weight"], "net."),
        (["model.layers.0.a.weight", "lm_head.weight"], ""),
        (["model.pos", "model.layers.0.a.weight"], "model."),
        (["model_a.weight", "model_b.weight"], ""),
        (["linear.weight", "linear.bias"], ""),
        (["net.linear.weight", "net.linear.bias"], "net."),
        (["weight"], ""),
    ],
)
def test_the_prefix_that_all_names_share_is_cut_off(tmp_path: Path, names: list[str], prefix: str) -> None:
    path = write_safetensors(tmp_path / "m", header_of(dict.fromkeys(names, 8)))
    tree = discover_file(path)
    assert tree.prefix == prefix
    assert sorted(prefix + tensor.name for unit in tree.units for tensor in unit.tensors) == sorted(names)


def test_a_given_prefix_is_taken_at_its_word(tmp_path: Path) -> None:
    names = ["a.x.weight", "a.y.weight", "b.x.weight"]
    path = write_safetensors(tmp_path / "m", header_of(dict.fromkeys(names, 8)))
    assert discover_file(path, prefix="").prefix == ""
    assert discover_file(path, prefix="a.").size_bytes == 16
    with pytest.raises(ModelWithoutParametersError, match=r"no tensor name starts with 'c\.'"):
        discover_file(path, prefix="c.")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelWithoutParametersError, match="no tensors"):
        discover_file(write_safetensors(tmp_path / "m", {}))


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m", header_of({"a": 4}))
    assert read_safetensors_header(str(path)).path == path
