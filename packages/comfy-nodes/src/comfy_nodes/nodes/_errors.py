"""The errors of the nodes themselves; those of the allocation language and of the host adapter pass through."""

from __future__ import annotations

from reprlib import Repr

_QUOTE = Repr()
_QUOTE.maxstring = _QUOTE.maxother = 100
"""Quotes at most a line."""


class NodeError(ValueError):
    """Root of the errors of the nodes."""


class ConflictingInputsError(NodeError):
    """Two inputs say the same thing differently, because a workflow uses an old and a new name at once.

    Attributes:
        first: one of the names.
        second: the other.
    """

    def __init__(self, meaning: str, first: tuple[str, object], second: tuple[str, object]) -> None:
        self.first, self.second = first[0], second[0]
        super().__init__(
            f"{first[0]} = {_QUOTE.repr(first[1])} and {second[0]} = {_QUOTE.repr(second[1])} both say {meaning} and "
            "differ; keep one"
        )


class InputValueError(NodeError):
    """The value of an input cannot be what the input is for.

    Attributes:
        name: the input.
        value: its value.
    """

    def __init__(self, name: str, value: object, remedy: str) -> None:
        self.name = name
        self.value = value
        super().__init__(f"{name} = {_QUOTE.repr(value)}: {remedy}")


class SiblingError(NodeError):
    """A node of another pack cannot be run on the device that was chosen."""
