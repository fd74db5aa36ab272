"""What may travel: plain data and tensors, every bit of them, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_examples import every_type, same_bits

from ray_parallel.workers import InvalidRequestError
from ray_parallel.workers.weights._plain import decode, encode, require_plain

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=plain)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    assert decode(pickle.loads(pickle.dumps(encode(value, "it")))) == value


def test_tensors_of_every_type_come_back_bit_by_bit() -> None:
    tensors = every_type()
    back = decode(pickle.loads(pickle.dumps(encode({"state": [tensors]}, "it"))))["state"][0]
    assert set(back) == set(tensors)
    assert all(same_bits(back[name], tensors[name]) for name in tensors)


def test_a_tensor_that_came_back_has_memory_of_its_own() -> None:
    tensor = torch.ones(3)
    back = decode(encode(tensor, "it"))
    back.add_(1)
    assert torch.equal(tensor, torch.ones(3))


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6.0).view(2, 3).T, torch.arange(8.0)[::3], torch.complex(torch.ones(2), torch.ones(2)).conj()],
    ids=["transposed", "strided", "conjugate"],
)
def test_views_travel_as_what_they_show(tensor: torch.Tensor) -> None:
    assert torch.equal(decode(encode(tensor, "it")), tensor)


class Wrapped(torch.Tensor):
    """Some tensor of somebody's own."""


class NotPlain:
    pass


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {"b": print}]}, r"arguments\['a'\]\[1\]\['b'\] is a builtin_function_or_method"),
        ([NotPlain()], r"arguments\[0\] is a NotPlain"),
        ({1: 2}, "arguments is a dict"),
        ({"t": torch.ones(1).as_subclass(Wrapped)}, r"arguments\['t'\] is a Wrapped"),
        ({"s": {1, 2}}, r"arguments\['s'\] is a set"),
        ({"m": torch.nn.Linear(1, 1)}, r"arguments\['m'\] is a Linear"),
    ],
)
def test_everything_else_is_refused_by_name(value: Any, place: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{place}, but only plain data and tensors travel"):
        require_plain(value, "arguments")


@pytest.mark.parametrize("key", ["ray_parallel.tensor", "ray_parallel.tuple"])
def test_a_mapping_that_would_be_taken_for_something_else_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"it\[0\] has the key 'ray_parallel\..*, which stands for"):
        encode([{key: [1]}], "it")


@pytest.mark.parametrize(
    ("tensor", "kind"), [(torch.ones(2, device="meta"), "meta"), (torch.eye(2).to_sparse(), "sparse_coo")]
)
def test_a_tensor_without_plain_bytes_is_refused(tensor: torch.Tensor, kind: str) -> None:
    for tensors in (True, False):
        with pytest.raises(InvalidRequestError, match=rf"it\['t'\] is a tensor .*{kind}.*dense tensors"):
            encode({"t": tensor}, "it", tensors=tensors)


def test_any_mapping_will_do() -> None:
    class Frozen(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return {"a": 1}[key]

        def __iter__(self) -> Any:
            return iter(("a",))

        def __len__(self) -> int:
            return 1

    assert encode(Frozen(), "it") == {"a": 1}
