"""Exit codes, and how the libraries' errors become one: a sentence on stderr, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final


class ExitCode(IntEnum):
    """The exit codes of the command."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked to.

    Attributes:
        exit_code: for the shell.
    """

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.REFUSED) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written, before the work that would end there.

    Raises:
        CommandError: it is a folder, or its folder is not there.
    """
    if path.is_dir():
        raise CommandError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no folder {path.parent}; make it, or choose another place")


@contextmanager
def exits_with(exit_code: ExitCode, *errors: type[Exception]) -> Iterator[None]:
    """Turn the given errors of a library into a `CommandError` with the same message; those of files get a remedy.

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
        raise CommandError(_sentence(error), exit_code=exit_code) from error


_REMEDIES: Final = (
    (FileNotFoundError, "check the name and the folder"),
    (IsADirectoryError, "name a file"),
    (FileExistsError, "choose another name, or move away what is there"),
    (NotADirectoryError, "choose a folder; part of this path is a file"),
    (PermissionError, "choose a place where you have the rights, or change them"),
)


def _sentence(error: Exception) -> str:
    """What an error says; the system's own words about a file begin with the file and end with what to do."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    remedy = next((f"; {remedy}" for kind, remedy in _REMEDIES if isinstance(error, kind)), "")
    return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}{remedy}"
