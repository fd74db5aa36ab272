"""Where the threads of one group wait for each other, and learn at once when one of them is gone."""

from __future__ import annotations

import threading


class MeetingError(Exception):
    """Somebody who waits here will not be met; the message gives the reason."""


class Meeting:
    """A barrier for `size` ranks that also ends when a rank has left.

    `threading.Barrier` knows nothing of a rank that finished and will never come, and its `abort` fails ranks that
    were met already and have not woken yet.

    Args:
        size: ranks that meet.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._count = 0
        self._round = 0
        self._reason: str | None = None
        self._changed = threading.Condition()

    def wait(self, timeout_s: float) -> None:
        """Return when all ranks are here.

        Args:
            timeout_s: how long to wait for the others, seconds.

        Raises:
            MeetingError: a rank left or failed, or did not come in time; nobody meets here after that.
        """
        with self._changed:
            mine = self._round
            if self._reason is None:
                self._count += 1
                if self._count == self.size:
                    self._count, self._round = 0, mine + 1
                    self._changed.notify_all()
                    return
                self._changed.wait_for(lambda: self._round != mine or self._reason is not None, timeout_s)
            if self._round == mine:
                self._end(f"another rank did not come within {timeout_s:g} seconds")
                raise MeetingError(self._reason)

    def end(self, reason: str) -> None:
        """Wake everybody who waits, with an error, and let nobody meet here again until `reopen`."""
        with self._changed:
            self._end(reason)

    def reopen(self) -> None:
        """Let the ranks meet again. Nobody may be waiting."""
        with self._changed:
            self._reason, self._count = None, 0

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        self._changed.notify_all()
