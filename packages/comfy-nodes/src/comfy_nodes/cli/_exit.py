"""Exit codes, and how the libraries' errors become one: a sentence on stderr, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """What the command tells the shell."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked to.

    Attributes:
        exit_code: what the shell is told.
    """

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.REFUSED) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@contextmanager
def exits_with(exit_code: ExitCode, *errors: type[Exception]) -> Iterator[None]:
    """Turn the given errors of a library into a `CommandError` with the same message.

    Only errors that are meant for people belong here: their messages name the thing, the reason and the remedy.
    Anything else is a defect of ours and keeps its traceback.

    >>> with exits_with(ExitCode.USAGE, ValueError):
    ...     raise ValueError("a sentence")
    Traceback (most recent call last):
    comfy_nodes.cli._exit.CommandError: a sentence
    """
    try:
        yield
    except errors as error:
        raise CommandError(str(error), exit_code=exit_code) from error
