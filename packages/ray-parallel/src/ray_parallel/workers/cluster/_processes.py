"""Processes that a cluster started, by the kernel's own list, so that none outlives it.

Only the standard library is imported, for the watcher is a process that should cost next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_KILLED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, distinguished from a later one with the same number by its start.

    Attributes:
        pid: its number.
        started: clock ticks from the start of the machine.
    """

    pid: int
    started: int

    def is_alive(self) -> bool:
        """Whether it still runs; one that ended but was not yet collected by its parent does not."""
        found = _stat(self.pid)
        return found is not None and found[2] == self.started and found[0] not in "ZX"

    def command_line(self) -> str:
        """Its arguments, separated by blanks; empty once it ended."""
        try:
            raw = (_PROC / str(self.pid) / "cmdline").read_bytes()
        except OSError:
            return ""
        return raw.replace(b"\0", b" ").decode(errors="replace")


def process(pid: int) -> Process | None:
    """The process of a number, or None when it is gone, or without /proc (elsewhere than on Linux)."""
    found = _stat(pid)
    return Process(pid, found[2]) if found else None


def descendants(pid: int) -> tuple[Process, ...]:
    """All processes below one, children of children included."""
    if sys.platform != "linux":
        return ()
    children: dict[int, list[Process]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (found := _stat(int(folder.name))):
            children.setdefault(found[1], []).append(Process(int(folder.name), found[2]))
    below = list(children.get(pid, ()))
    for one in below:
        below.extend(children.get(one.pid, ()))
    return tuple(below)


def end(processes: Iterable[Process], *, patience_seconds: float) -> tuple[Process, ...]:
    """Wait for processes to end, kill those that do not, and see them gone.

    Returns:
        Those that had to be killed.
    """
    late = _wait(processes, patience_seconds)
    for one in late:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    # The kernel first gives a killed process's memory back; only one that hangs in a driver takes longer than this.
    _wait(late, _KILLED_SECONDS)
    return tuple(late)


def _wait(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Those of the processes that still run after so many seconds."""
    give_up = time.monotonic() + seconds
    waiting = [one for one in processes if one.is_alive()]
    while waiting and time.monotonic() < give_up:
        time.sleep(0.01)
        waiting = [one for one in waiting if one.is_alive()]
    return waiting


class Watcher:
    """A small process that tidies up behind this one, should it be killed before it could do so itself.

    It waits for the end of a pipe that only this process holds, which comes however this process ends. Ray's servers
    end with their driver, but not all: its agents run on for a minute, and nobody removes the folder.

    Args:
        folder: what it removes.
        processes: what it ends before that.
    """

    def __init__(self, folder: Path, processes: Sequence[Process]) -> None:
        code = "import sys; sys.path.insert(0, sys.argv[1]); from _processes import tidy_up; tidy_up()"
        self._process = subprocess.Popen(
            # Without site-packages it starts in 20 ms; in a separate session, Ctrl-C does not reach it.
            [sys.executable, "-I", "-S", "-c", code, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        assert self._process.stdin is not None
        # By the pipe, for a command line that names the folder is taken for one of the cluster's.
        print(
            folder, *(f"{one.pid}:{one.started}" for one in processes), sep="\n", file=self._process.stdin, flush=True
        )

    def dismiss(self) -> None:
        """End it: there is nothing to tidy up any more."""
        self._process.kill()
        self._process.communicate()


def tidy_up() -> None:
    """What the watcher does: wait for the end of standard input, end the processes, and remove the folder."""
    folder, *named = sys.stdin.read().splitlines()
    end((Process(*map(int, name.split(":"))) for name in named), patience_seconds=1.0)
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start of a process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[19])
