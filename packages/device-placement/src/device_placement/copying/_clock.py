"""Clocks for the emulated link: the machine's, and one that a test moves by hand."""

from __future__ import annotations

import threading
import time
from typing import Protocol

SLEEP_MARGIN_SECONDS = 1e-3
"""A sleep may end this much late; the rest of a wait is spent looking at the clock."""


class Clock(Protocol):
    """A clock that can be waited on."""

    def now(self) -> float:
        """Seconds since some fixed moment."""

    def wait_until(self, moment: float) -> None:
        """Return when `now()` is at least `moment`."""


class SystemClock:
    """The machine's monotonic clock, exact to microseconds."""

    def now(self) -> float:
        """Seconds of the performance counter."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Sleep for most of it and watch the clock for the rest, since sleeps end late."""
        remaining = moment - time.perf_counter()
        if remaining > SLEEP_MARGIN_SECONDS:
            time.sleep(remaining - SLEEP_MARGIN_SECONDS)
        # Not even `sleep(0)`: on a busy machine that gives the processor away for milliseconds.
        while time.perf_counter() < moment:
            pass


class VirtualClock:
    """Time that passes only when somebody says so: a run on it takes no time and is the same everywhere.

    >>> clock = VirtualClock()
    >>> clock.advance(1.5)
    >>> clock.wait_until(1.0)
    >>> clock.now()
    1.5
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the clock was made."""
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass, as a forward would."""
        with self._lock:
            self._now += seconds

    def wait_until(self, moment: float) -> None:
        """Jump to `moment`, never back."""
        with self._lock:
            self._now = max(self._now, moment)
