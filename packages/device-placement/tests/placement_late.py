"""A thread that copies as late as it may: what a busy machine does now and then, done every time."""

from __future__ import annotations

import contextlib
import importlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


class _Turns:
    """Numbers jobs in their order, and lets each begin only when somebody waits for it or for a later one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given = 0
        self._wanted = 0.0

    def take(self) -> int:
        """The number of the next job."""
        with self._changed:
            self._given += 1
            return self._given

    def want(self, number: float) -> None:
        """Let all jobs up to this one begin."""
        with self._changed:
            self._wanted = max(self._wanted, number)
            self._changed.notify_all()

    def await_turn(self, number: int) -> None:
        """Block until somebody wants it."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted >= number)


@contextlib.contextmanager
def late_threads(package: types.ModuleType) -> Iterator[None]:
    """Jobs that `package` gives to its threads are not begun before the host waits for them.

    A package that forgets to wait finds nothing done, on any machine; one that waits where it must notices nothing.
    At the end whatever is left is done.
    """
    module: Any = importlib.import_module(f"{package.__name__}.copying._worker")
    turns = _Turns()
    numbers: dict[int, int] = {}
    give, wait, close = module.Worker.give, module.Job.wait, module.Worker.close

    def give_late(worker: Any, action: Callable[[], None]) -> Any:
        number = turns.take()

        def act() -> None:
            turns.await_turn(number)
            action()

        job = give(worker, act)
        numbers[id(job)] = number
        return job

    def wait_for(job: Any) -> None:
        turns.want(numbers[id(job)])
        wait(job)

    def close_after_all(worker: Any) -> None:
        turns.want(float("inf"))
        close(worker)

    try:
        with (
            mock.patch.object(module.Worker, "give", give_late),
            mock.patch.object(module.Job, "wait", wait_for),
            mock.patch.object(module.Worker, "close", close_after_all),
        ):
            yield
    finally:
        turns.want(float("inf"))
