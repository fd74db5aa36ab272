"""What will be called next: what followed the last time.

A model calls its units in the same order pass after pass, some twice, some not at all; when it does something else (a
cached step, an exception, another branch), it will mostly do what it did the last time it was there. So the history
of calls predicts itself: a cursor walks one pass behind the calls, and what follows the cursor is expected next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

Unit = TypeVar("Unit")

MIN_HISTORY = 4096
"""Calls that are remembered at least; a pass of a large model has some hundred."""

MAX_CONTEXT = 32
"""Calls that are compared, going back, to tell two occasions of a unit apart."""


class CallOrder(Generic[Unit]):
    """The history of calls and the cursor in it.

    Args:
        expected: each unit once, in the order that is expected of the first pass.

    >>> order = CallOrder("abcd")
    >>> [order.record(unit) for unit in "abcdab"]
    [True, True, True, True, True, True]
    >>> order.upcoming(3)
    ['c', 'd', 'a']
    >>> [order.record(unit) for unit in "cdacdacd"]  # from the second pass on, b is skipped: one surprise
    [True, True, True, False, True, True, True, True]
    """

    __slots__ = ("_calls", "_cursor", "_limit")

    def __init__(self, expected: Sequence[Unit]) -> None:
        self._calls = list(expected)
        self._cursor = -1
        self._limit = max(MIN_HISTORY, 16 * len(self._calls))

    def record(self, unit: Unit) -> bool:
        """Note that `unit` is called now; False when something else was expected."""
        calls = self._calls
        following = self._cursor + 1
        expected = calls[following] is unit or calls[following] == unit
        self._cursor = following if expected else self._find(unit)
        calls.append(unit)
        if len(calls) > self._limit:
            self._forget()
        return expected

    def upcoming(self, count: int) -> list[Unit]:
        """The first `count` different units that are expected, soonest first; fewer when the cycle has fewer."""
        result: list[Unit] = []
        # From the cursor to the end is one pass, the last one's rest and what was called of this one.
        for position in range(self._cursor + 1, len(self._calls)):
            unit = self._calls[position]
            if unit not in result:
                result.append(unit)
                if len(result) == count:
                    break
        return result

    def _find(self, unit: Unit) -> int:
        """The call of `unit` most like this one: the longest run of equal calls before it, then the latest."""
        calls = self._calls
        best, best_match = len(calls) - 1, -1
        for position in range(len(calls) - 1, -1, -1):
            if calls[position] != unit:
                continue
            match = 0
            while match < min(MAX_CONTEXT, position) and calls[position - 1 - match] == calls[-1 - match]:
                match += 1
            if match > best_match:
                best, best_match = position, match
        return best

    def _forget(self) -> None:
        """Drop the oldest calls, never those from the cursor on."""
        excess = max(0, min(len(self._calls) - self._limit // 2, self._cursor - MAX_CONTEXT))
        del self._calls[:excess]
        self._cursor -= excess
