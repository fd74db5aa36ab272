"""One tree for everything this package raises: the thing, the reason, the remedy, and the data behind the sentence."""

from __future__ import annotations

from typing import Any


class ParallelError(Exception):
    """Anything that ray_parallel refuses or cannot finish.

    Its message and data arrive whole in another process, as a pool of processes sends an error.

    Attributes:
        is_refusal: the same request would fail again; False where another try may succeed.
    """

    is_refusal = True

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[ParallelError], args: tuple[Any, ...]) -> ParallelError:
    """An error with these arguments of its message; the constructors of most make the message themselves."""
    error = kind.__new__(kind)
    error.args = args
    return error
