"""`WorkerGroup`: several workers as one, with a state, deadlines, and a new start after anything that goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from ray_parallel.workers.cluster._cluster import Cluster
from ray_parallel.workers.group._actors import Generation
from ray_parallel.workers.group._call import Call, Progress, cancel
from ray_parallel.workers.group._errors import GroupStateError
from ray_parallel.workers.group._names import require_name
from ray_parallel.workers.group._options import GroupOptions, Recipe
from ray_parallel.workers.weights._errors import WeightsError
from ray_parallel.workers.weights._plain import Plain, decode, encode
from ray_parallel.workers.weights._sharing import Share, SharingReport

State = Literal["new", "starting", "ready", "busy", "broken", "closed"]


class WorkerGroup:
    """Workers that run one call together, each a separate process.

    A group is ``new`` until it is first used, then ``starting``, ``ready`` and ``busy``. Anything that goes wrong
    makes it ``broken``: all its processes are ended, because those who wait for the failed one would wait for ever.
    The next call starts a new generation, which builds everything again from the recipe. A ``closed`` group stays
    closed.

    Args:
        cluster: where the workers run; groups may share one.
        recipe: how each worker builds what it works with.
        options: how many, where, and for how long.

    Attributes:
        state: as above.
        generation: starts so far.
    """

    def __init__(self, cluster: Cluster, recipe: Recipe | None = None, options: GroupOptions | None = None) -> None:
        self.options = options or GroupOptions()
        self.recipe = recipe or Recipe()
        self.generation = 0
        self._state: State = "new"
        self._cluster = cluster
        self._current: Generation | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._calls = 0
        self._running: int | None = None

    @property
    def state(self) -> State:
        """See above."""
        return "closed" if self._closed else self._state

    def start(self) -> None:
        """Start the workers now rather than at the first call; does nothing when they are ready.

        Raises:
            WorkersError: the request cannot be met, or a worker failed; the processes are gone.
        """
        with self._exclusive("start"):
            self._ready()

    def call(
        self,
        function: str,
        arguments: Mapping[str, Plain] | None = None,
        *,
        on_step: Callable[[Progress], None] | None = None,
        call_seconds: float | None = None,
        step_seconds: float | None = None,
    ) -> list[Any]:
        """Run a function in all workers and wait for it.

        Args:
            function: ``"package.module:function"``, called as ``function(context, built, **arguments)`` where `built`
                is what the factory returned.
            arguments: plain data and tensors.
            on_step: called in this thread with the progress of rank 0. When it raises, the call is cancelled, and the
                exception goes on from here once all workers stopped.
            call_seconds: another deadline than that of the options.
            step_seconds: likewise.

        Returns:
            What the function returned, by rank.

        Raises:
            RunRefusedError: a worker refused the request: an error of this package.
            WorkerRaisedError: a worker raised something else.
            WorkerDiedError: the process of a worker ended.
            DeadlineExceededError: a deadline passed.
            CancelledError: `cancel` was called; the group stays ready.
            GroupStateError: the group is closed, or busy with the call of another thread.
            InvalidRequestError: the function is no name, an argument is not plain data, or a deadline makes no sense.
        """
        require_name(function, "function")
        encoded = encode(arguments or {}, "the arguments")
        limits = replace(
            self.options,
            call_seconds=self.options.call_seconds if call_seconds is None else call_seconds,
            step_seconds=self.options.step_seconds if step_seconds is None else step_seconds,
        )
        with self._exclusive("call"):
            generation = self._ready()
            self._calls += 1
            self._running, self._state = self._calls, "busy"
            try:
                with self._whole("a call was running"):
                    results = Call(generation, self._running, limits).finish(function, encoded, on_step)
            finally:
                self._running = None
            self._state = "ready"
        if isinstance(results, BaseException):
            raise results
        return [decode(result) for result in results]

    def cancel(self) -> bool:
        """Let the running call of another thread end at its next step, on all workers at the same one.

        Returns:
            Whether a call was running.
        """
        running, generation = self._running, self._current
        if running is None or generation is None:
            return False
        cancel(generation, running)
        return True

    def sharing(self) -> SharingReport:
        """Measure how the workers share the weights.

        Raises:
            WeightsError: the group has no shared weights.
            WorkersError: as `call`.
        """
        weights = self.recipe.weights
        if weights is None:
            raise WeightsError("the group", "has no shared weights", "give its recipe some")
        with self._exclusive("measure"):
            generation = self._ready()
            with self._whole("it measured its memory"):
                generation.renew(self.options.start_seconds)
                # Twice: only when all workers have touched every page does the kernel count them for all.
                generation.ask("measure its memory", "share")
                answers = generation.ask("measure its memory", "share")
        shares = tuple(Share(**answer) for answer in answers if answer is not None)
        return SharingReport(mode=weights.mode, weights_bytes=weights.size_bytes, shares=shares)

    def restart(self) -> None:
        """End the workers and start a new generation.

        Raises:
            WorkersError: as `start`.
        """
        with self._exclusive("restart"):
            if self._current is not None:
                self._break()
            self._ready()

    def close(self) -> None:
        """End all workers for good, also those of a running call; a second call does nothing."""
        self._closed = True
        self._break()

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _exclusive(self, what: str) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise GroupStateError(self.state, f"it cannot {what} before the other thread is done with it")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _whole(self, doing: str) -> Iterator[None]:
        """Break the group when anything goes wrong; errors that closing it causes are reported as a closed group."""
        try:
            yield
        except BaseException as error:
            self._break()
            if not self._is_closed or not isinstance(error, Exception):
                raise
        if self._is_closed:
            self._break()
            raise GroupStateError("closed", f"it was closed while {doing}")

    @property
    def _is_closed(self) -> bool:
        return self._closed or self._cluster.is_closed

    def _ready(self) -> Generation:
        """The workers, started if there are none."""
        if self._is_closed:
            raise GroupStateError("closed", "make a new one, on a cluster that is running")
        if self._current is not None:
            return self._current
        self._state = "starting"
        self.generation += 1
        with self._whole("it was starting"):
            generation = self._current = Generation(self._cluster, self.options, self.generation)
            generation.start(self.recipe)
        self._state = "ready"
        return generation

    def _break(self) -> None:
        self._state = "broken"
        generation, self._current = self._current, None
        if generation is not None and not self._cluster.is_closed:
            generation.stop()
