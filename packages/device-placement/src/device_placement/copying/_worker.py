"""A thread that does its tasks in order, for copies that the device cannot do by itself."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable


class Job:
    """Something that the worker will do once."""

    __slots__ = ("_action", "_done", "_error")

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        # A bare lock, taken until the job is done: an Event costs more than handing a job over.
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, and keep what went wrong for who waits."""
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that can act on it
            self._error = error
        self._done.release()

    def wait(self) -> None:
        """Block until it is done, well or not."""
        with self._done:
            pass

    def raise_error(self) -> None:
        """Raise what it raised, once it is done."""
        if self._error is not None:
            raise self._error


class Worker:
    """One daemon thread, which ends at `close` or when nothing refers to the worker any more."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # The thread refers to the queue alone: a reference to the worker would keep it from ever being collected.
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        # Also at the end of the program: a thread that is still copying when the interpreter goes takes it down.
        self._stop = weakref.finalize(self, _end, self._jobs, self._thread)
        self._thread.start()

    def give(self, action: Callable[[], None]) -> Job:
        """Let the thread do `action` after all it was given before."""
        job = Job(action)
        self._jobs.put(job)
        return job

    def close(self) -> None:
        """Do what was given, then end the thread."""
        self._stop()


def _end(jobs: queue.SimpleQueue[Job | None], thread: threading.Thread) -> None:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        # While it waits, the thread must not keep what the last job copied.
        del job
