"""What the ranks compare before a forward: everything that shapes it, and nothing that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_parallel.sequence import PreflightError, run_threads
from ray_parallel.sequence.ranks._preflight import describe, preflight

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]

shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(lambda shape, dtype: torch.zeros(shape, dtype=dtype), shapes, st.sampled_from(DTYPES))
leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=3) | tensors
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=6,
)


def skeleton(value: Any) -> Any:
    """The same with every tensor replaced by what may be compared of it; types beside values, for 1 == True."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape))
    if isinstance(value, dict):
        return ("mapping", tuple(sorted((key, skeleton(part)) for key, part in value.items())))
    if isinstance(value, list):
        return ("list", tuple(map(skeleton, value)))
    return (type(value).__name__, repr(value))


@given(one=values, other=values)
def test_texts_are_equal_when_shapes_and_plain_values_are(one: Any, other: Any) -> None:
    same = repr(skeleton(one)) == repr(skeleton(other))
    if same:
        assert describe(one) == describe(other)


@given(shape=shapes, changed=shapes, dtype=st.sampled_from(DTYPES), second=st.sampled_from(DTYPES))
def test_shape_and_type_of_a_tensor_are_told_apart(
    shape: list[int], changed: list[int], dtype: torch.dtype, second: torch.dtype
) -> None:
    texts = {describe({"x": torch.zeros(shape, dtype=dtype)}), describe({"x": torch.zeros(changed, dtype=second)})}
    assert len(texts) == (1 if (shape, dtype) == (changed, second) else 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (1, "1"), (None, "None"), ([1], 1), ([[1], 2], [1, 2]), ({"a": 1}, {"b": 1}), (0.1, 0.2),
     ({"a": 1}, {"a": 1, "b": None}), ([], {}), (torch.zeros(1), [0.0]), (print, "print")],
)  # fmt: skip
def test_values_that_differ_are_told_apart(one: Any, other: Any) -> None:
    assert describe(one) != describe(other)


def test_the_order_of_a_mapping_and_the_contents_of_tensors_do_not_count() -> None:
    assert describe({"a": 1, "b": torch.zeros(2)}) == describe({"b": torch.ones(2), "a": 1})
    assert describe({2: "x", "1": "y"}) == describe({"1": "y", 2: "x"})


def test_an_object_counts_by_its_class_also_as_a_key() -> None:
    class Hook:
        pass

    assert describe({Hook(): Hook()}) == describe({Hook(): Hook()}) == "{Hook: Hook}"
    assert describe({("double_block", 0): 1}) == "{('double_block', 0): 1}"


@settings(deadline=None, max_examples=30)
@given(votes=st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_all_ranks_come_to_the_same_verdict_about_who_differs(votes: list[int]) -> None:
    def rank(comm: Any) -> tuple[int, ...]:
        try:
            preflight(comm, {"steps": votes[comm.rank]})
        except PreflightError as error:
            assert f"{{steps: {votes[comm.rank]}}}" in str(error)
            return error.ranks
        return ()

    verdicts = run_threads(len(votes), rank, timeout_s=10)
    assert len(set(verdicts)) == 1
    differing = [place for place, vote in enumerate(votes) if place not in verdicts[0] and vote != votes[0]]
    if len(set(votes)) == 1:
        assert verdicts[0] == ()
    else:
        agreeing = {votes[place] for place in range(len(votes)) if place not in verdicts[0]}
        assert len(agreeing) == 1
        assert len(verdicts[0]) <= len(votes) - max(votes.count(vote) for vote in votes)
        assert differing == [] or votes[0] not in agreeing
