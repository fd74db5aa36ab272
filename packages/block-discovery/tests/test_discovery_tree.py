"""The data model: a tree cannot contradict itself, and its JSON is read strictly."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from block_discovery import (
    BlockTree,
    InvalidJsonError,
    InvalidTensorError,
    InvalidTreeError,
    TensorInfo,
    Unit,
    UnitKind,
)


def unit(path: str, *names: str, kind: UnitKind = "block", group: str | None = None) -> Unit:
    return Unit(
        path=path,
        class_name="Block",
        kind=kind,
        group=group,
        tensors=tuple(TensorInfo(name=n, size_bytes=4) for n in names),
    )


REST = unit("", "norm.weight", "norm.bias", kind="rest")
TREE = BlockTree(
    units=(
        unit("layers.0", "layers.0.a", "layers.0.b", group="layers"),
        unit("head", "head.weight", kind="leaf"),
        REST,
    ),
    tied=(("norm.weight", "final.weight"),),
)


def test_sizes_add_up() -> None:
    assert TREE.units[0].size_bytes == 8
    assert TREE.size_bytes == 20
    assert TREE.rest is REST
    assert BlockTree(units=TREE.units[:2]).rest is None
    assert BlockTree(units=()).rest is None


def test_a_tree_is_immutable_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        TREE.units = ()  # type: ignore[misc]
    assert hash(TREE) == hash(BlockTree.from_json(TREE.to_json()))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor in two units": (
        {"units": (unit("a", "x"), unit("b", "x"))},
        r"tensor 'x': is charged twice, to 'a' and to 'b'; charge it to one unit",
    ),
    "a tensor twice in a unit": ({"units": (unit("a", "x", "x"),)}, r"tensor 'x': is charged twice, to 'a' and to 'a'"),
    "a path twice": (
        {"units": (unit("a", "x"), unit("a", "y"))},
        r"unit 'a': is listed twice; give each path one unit",
    ),
    "a unit inside another": (
        {"units": (unit("a", "x"), unit("a.b.c", "y"))},
        r"unit 'a\.b\.c': lies inside the unit 'a'; charge its tensors to one",
    ),
    "an unknown kind": (
        {"units": (unit("a", "x", kind=cast(UnitKind, "big")),)},
        r"kind 'big' does not exist; choose one of block, leaf, rest",
    ),
    "a block without a path": (
        {"units": (unit("", "x"),)},
        r"unit '': kind 'block' does not go with this path; the rest, and",
    ),
    "a rest with a path": (
        {"units": (unit("a", "x", kind="rest"),)},
        r"unit 'a': kind 'rest' does not go with this path",
    ),
    "a rest that is not last": ({"units": (REST, unit("a", "x"))}, r"unit '': the rest is not the last unit; move it"),
    "two rests": ({"units": (unit("", "x", kind="rest"), REST)}, r"the rest is not the last unit"),
    "a unit without tensors": ({"units": (unit("a"),)}, r"unit 'a': has no tensors; leave units without tensors out"),
    "a name tied to itself": (
        {"units": (), "tied": (("a", "a"),)},
        r"tied: \('a', 'a'\) ties nothing together; list every",
    ),
    "an empty tie": ({"units": (), "tied": ((),)}, r"tied: \(\) ties nothing together"),
}


@pytest.mark.parametrize("fault", CONTRADICTIONS)
def test_a_tree_that_contradicts_itself_is_refused(fault: str) -> None:
    fields, message = CONTRADICTIONS[fault]
    with pytest.raises(InvalidTreeError, match=message):
        BlockTree(**fields)


def test_a_unit_beside_one_of_a_longer_name_is_fine() -> None:
    assert BlockTree(units=(unit("layers.1", "x"), unit("layers.10", "y"), unit("layers", "z"))[:2]).size_bytes == 8


@pytest.mark.parametrize("size", [-1, 2**63])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(
        InvalidTensorError, match=rf"tensor 'a': has {size} bytes; a size is between 0 and 9223372036854775807"
    ):
        TensorInfo(name="a", size_bytes=size)


TENSORS = st.builds(
    TensorInfo,
    name=st.text(min_size=1, max_size=8),
    size_bytes=st.integers(0, 2**63 - 1),
    shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    dtype=st.none() | st.sampled_from(["bfloat16", "float8_e4m3fn"]),
    role=st.sampled_from(["parameter", "buffer"]),
)


@given(
    tensors=st.lists(TENSORS, min_size=1, max_size=6, unique_by=lambda tensor: tensor.name), prefix=st.text(max_size=4)
)
def test_every_field_survives_json(tensors: list[TensorInfo], prefix: str) -> None:
    units = [
        Unit(path=f"u{index}", class_name="C", kind="leaf", group=None, tensors=(tensor,), is_embedding=index % 2 == 0)
        for index, tensor in enumerate(tensors)
    ]
    tree = BlockTree(units=tuple(units), tied=(("a", "b"), ("c", "d", "e")), source="names", prefix=prefix)
    assert BlockTree.from_json(tree.to_json()) == tree


def changed(path: str, value: Any) -> str:
    """The JSON of TREE with the value at a path such as ``units.0.kind`` replaced, or removed where it is `...`."""
    data = json.loads(TREE.to_json())
    *parents, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    target = data
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("units", ..., r"units: the field is missing"),
        ("extra", 1, r"extra: unknown field; known are units, tied, source, prefix"),
        ("version", 2, r"version: expected 1, got 2; write it again with this release"),
        ("format", "other", r'no object with "format": "block-discovery/tree"; pass the text that to_json returned'),
        ("units", {}, r"units: expected a list, got \{\}"),
        ("units.1", "x", r"units\[1\]: expected an object, got 'x'"),
        ("units.1.kind", "huge", r"units\[1\]\.kind: expected one of 'block', 'leaf', 'rest', got 'huge'"),
        ("units.1.path", None, r"units\[1\]\.path: expected a string, got None"),
        ("units.1.group", 3, r"units\[1\]\.group: expected a string, got 3"),
        ("units.1.is_embedding", 1, r"units\[1\]\.is_embedding: expected true or false, got 1"),
        ("units.0.tensors.1.size_bytes", True, r"units\[0\]\.tensors\[1\]\.size_bytes: expected an integer, got True"),
        ("units.0.tensors.1.size_bytes", 4.0, r"size_bytes: expected an integer, got 4\.0"),
        ("units.0.tensors.1.shape", [1, "2"], r"units\[0\]\.tensors\[1\]\.shape\[1\]: expected an integer, got '2'"),
        ("units.0.tensors.0.role", "gradient", r"role: expected one of 'parameter', 'buffer', got 'gradient'"),
        ("units.0.tensors.0.name", ..., r"units\[0\]\.tensors\[0\]\.name: the field is missing"),
        ("tied.0", "ab", r"tied\[0\]: expected a list, got 'ab'"),
        ("source", 1, r"source: expected one of 'module', 'names', got 1"),
    ],
)
def test_json_of_another_shape_is_refused_with_the_path_of_the_fault(path: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidJsonError, match=message):
        BlockTree.from_json(changed(path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100000])
def test_text_that_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(InvalidJsonError, match="pass the text that to_json returned"):
        BlockTree.from_json(text)


def test_json_of_a_contradictory_tree_is_refused_by_the_tree() -> None:
    with pytest.raises(InvalidTreeError, match="has no tensors"):
        BlockTree.from_json(changed("units.0.tensors", []))
    with pytest.raises(InvalidTensorError, match="has -4 bytes"):
        BlockTree.from_json(changed("units.0.tensors.0.size_bytes", -4))
