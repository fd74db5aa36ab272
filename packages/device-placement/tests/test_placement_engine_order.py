"""The order of calls: what is learnt, what it costs to learn it, and what is expected next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device_placement.engine._prefetch_order import MIN_HISTORY, CallOrder

LESSONS = 10
"""Passes after which nothing is a surprise any more. Two, as a rule; the worst of 30,000 random patterns took 8."""

patterns = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@given(st.lists(st.integers(), min_size=1, max_size=8, unique=True), st.integers(1, 5))
def test_the_expected_order_is_never_a_surprise(units: list[int], passes: int) -> None:
    order = CallOrder(units)
    assert all(order.record(unit) for unit in units * passes)


@given(patterns)
def test_any_repeated_pattern_is_learnt_for_good(pattern: list[int]) -> None:
    order = CallOrder(sorted(set(pattern)))
    for unit in pattern * LESSONS:
        order.record(unit)
    assert all(order.record(unit) for unit in pattern * 3)


@given(patterns, patterns)
def test_a_changed_pattern_is_learnt_as_well(before: list[int], after: list[int]) -> None:
    order = CallOrder(sorted({*before, *after}))
    for unit in before * 3 + after * LESSONS:
        order.record(unit)
    assert all(order.record(unit) for unit in after * 2)


@given(patterns, st.integers(1, 8))
def test_upcoming_units_are_those_that_follow_each_once(pattern: list[int], count: int) -> None:
    order = CallOrder(sorted(set(pattern)))
    for unit in pattern * LESSONS:
        order.record(unit)
    upcoming = order.upcoming(count)
    assert upcoming == list(dict.fromkeys(pattern))[:count]


def test_a_skipped_unit_is_one_surprise() -> None:
    order = CallOrder(range(10))
    surprises = [not order.record(unit) for unit in [*range(10), *(unit for unit in range(10) if unit != 4)]]
    assert sum(surprises) == 1
    assert surprises[14]


def test_a_unit_called_twice_has_two_successors() -> None:
    order = CallOrder("abc")
    for unit in "abac" * 3:
        order.record(unit)
    assert order.upcoming(2) == ["a", "b"]
    order.record("a")
    assert order.upcoming(1) == ["b"]
    order.record("b")
    order.record("a")
    assert order.upcoming(1) == ["c"]


def test_an_interrupted_pass_is_forgiven() -> None:
    order = CallOrder(range(6))
    calls = [*range(6), 0, 1, 2, *range(6), *range(6)]
    assert sum(not order.record(unit) for unit in calls) <= 3


def test_an_unknown_unit_is_taken_in() -> None:
    order = CallOrder("ab")
    for unit in "abzabz":
        order.record(unit)
    assert all(order.record(unit) for unit in "abzabz")


def test_the_history_is_bounded_and_forgetting_changes_nothing() -> None:
    order = CallOrder(range(7))
    assert all(order.record(index % 7) for index in range(3 * MIN_HISTORY))
    assert len(order._calls) <= MIN_HISTORY
    assert order.upcoming(3) == [(3 * MIN_HISTORY + ahead) % 7 for ahead in range(3)]


def test_without_units_nothing_is_expected() -> None:
    assert CallOrder(()).upcoming(2) == []
