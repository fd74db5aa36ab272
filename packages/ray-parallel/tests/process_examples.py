"""Real processes for tests that look at them, wait for them, or end them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ray_parallel.workers.cluster._processes import Process, process

HOLD = "import sys; held = bytearray(int(sys.argv[1])); print(flush=True); sys.stdin.read()"
STUBBORN = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", {HOLD!r}, "0"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def running(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Process]]:
    """A child that printed its first line, and what the kernel's list calls it."""
    command = [sys.executable, "-S", "-c", code, *arguments]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
        ExitStack() as stack,
    ):
        stack.callback(child.kill)
        assert child.stdout is not None
        assert child.stdout.readline()
        found = process(child.pid)
        assert found is not None
        yield child, found
