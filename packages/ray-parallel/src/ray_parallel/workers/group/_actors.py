"""The processes of one generation of a group: started, asked, and ended by their handles."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_parallel.workers._errors import InvalidRequestError
from ray_parallel.workers.cluster._cluster import LOOPBACK, Cluster
from ray_parallel.workers.cluster._errors import PortTakenError
from ray_parallel.workers.cluster._processes import Process, end, process
from ray_parallel.workers.cluster._rendezvous import split_address
from ray_parallel.workers.group._devices import pin
from ray_parallel.workers.group._errors import (
    DeadlineExceededError,
    RunRefusedError,
    VersionMismatchError,
    WorkerDiedError,
    WorkerFailure,
    WorkerRaisedError,
)
from ray_parallel.workers.group._options import GroupOptions, Recipe
from ray_parallel.workers.group._versions import differences, versions
from ray_parallel.workers.group._worker import Record, Worker
from ray_parallel.workers.weights._plain import encode

CONTROL = "control"
_END_SECONDS = 2.0
_DEATH_SECONDS = 2.0
"""How long to look for a dead worker when another one complains, which the death may be the cause of."""


class Generation:
    """One start of all workers. Any failure is final: it is ended, and another one started.

    Attributes:
        number: counts from 1.
        actors: Ray's handles by rank.
        processes: the workers' processes, those of this machine that could be looked up.
    """

    def __init__(self, cluster: Cluster, options: GroupOptions, number: int) -> None:
        import ray

        untyped: Any = ray
        self.number = number
        self.processes: tuple[Process, ...] = ()
        self._ray = untyped
        self._uses_store = False
        self._cluster = cluster
        self._options = options
        self._deadline = time.monotonic() + options.start_seconds
        self._pins = self._pin()
        remote = untyped.remote(concurrency_groups={CONTROL: 2})(Worker)
        self.actors: list[Any] = [
            remote.options(
                num_cpus=0,
                num_gpus=0 if cluster.is_local or not seen else 1,
                max_restarts=0,
                runtime_env={"env_vars": self._environment(seen)},
            ).remote(rank, options.workers, number)
            for rank, seen in enumerate(self._pins)
        ]

    def start(self, recipe: Recipe) -> None:
        """Greet, compare versions, meet, and load.

        Raises:
            VersionMismatchError, PortTakenError, ObjectStoreSizeError, WorkerFailure: as their names say; the workers
                are to be ended by `stop`.
        """
        options, weights = self._options, recipe.weights
        self._uses_store = weights is not None and weights.mode == "store"
        greetings = self.ask("start", "hello")
        if self._cluster.is_local:
            found = (process(greeting["pid"]) for greeting in greetings)
            self.processes = tuple(one for one in found if one is not None)
        for rank, greeting in enumerate(greetings):
            if differing := differences(versions(), greeting["versions"]):
                raise VersionMismatchError(rank, differing)
        if (
            weights is not None
            and weights.mode == "file"
            and not all(self.ask("look for the weights", "sees", weights))
        ):
            weights.ship(self._cluster.room)
            self._uses_store = True
        host, port = self._meet(greetings[0]["host"])
        on_gpu = bool(self._pins[0])
        self.ask("meet each other", "join", host, port, on_gpu, self.remaining_seconds(), options.call_seconds)
        self.ask("load", "load", recipe.factory, encode(recipe.arguments, "the arguments of the factory"), weights)

    def ask(self, what: str, step: str, *arguments: Any) -> list[Any]:
        """Ask all workers for the same and wait for their answers until the deadline of the start.

        Raises:
            WorkerFailure: one raised, died, or is late.
        """
        return self._answers(what, [actor.do.remote(step, *arguments) for actor in self.actors])

    def remaining_seconds(self) -> float:
        """What is left of the time to start."""
        return max(0.1, self._deadline - time.monotonic())

    def renew(self, seconds: float) -> None:
        """Give `ask` another deadline."""
        self._deadline = time.monotonic() + seconds

    def failure(self, rank: int, record: Record) -> WorkerFailure:
        """The error for what a worker reported; a worker that died is named rather than those who miss it."""
        for other, actor in enumerate(self.actors):
            try:
                self._ray.get(actor.ping.options(concurrency_group=CONTROL).remote(), timeout=_DEATH_SECONDS)
            except self._ray.exceptions.RayActorError as error:
                return self.death(other, error)
            except self._ray.exceptions.GetTimeoutError:
                continue
        kind = RunRefusedError if record["refused"] else WorkerRaisedError
        return kind(
            rank=rank,
            generation=self.number,
            kind=record["kind"],
            reason=record["reason"],
            worker_traceback=record["traceback"],
        )

    def death(self, rank: int, error: Exception) -> WorkerDiedError:
        """The error for a process that ended."""
        message = " ".join(str(error).split())
        detail = message.partition("Worker exit detail: ")[2].partition(" Some common causes")[0]
        hint = "; a write in place to weights of the object store ends a worker too" if self._uses_store else ""
        return WorkerDiedError(
            rank=rank,
            generation=self.number,
            reason=f"it was killed, ran out of memory or crashed ({detail or message}){hint}",
        )

    def stop(self) -> None:
        """End all processes, by force: a worker that waits for another one would not listen."""
        for actor in self.actors:
            self._ray.kill(actor)
        self.actors = []
        end(self.processes, patience_seconds=_END_SECONDS)

    def _answers(self, what: str, refs: Sequence[Any]) -> list[Any]:
        values: list[Any] = [None] * len(refs)
        waiting = list(refs)
        while waiting:
            ready, waiting = self._ray.wait(waiting, num_returns=1, timeout=self.remaining_seconds())
            if not ready:
                late = refs.index(waiting[0]) if len(waiting) == 1 else None
                raise DeadlineExceededError(
                    what=what, rank=late, generation=self.number, seconds=self._options.start_seconds
                )
            rank = refs.index(ready[0])
            try:
                record: Record = self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError as error:
                raise self.death(rank, error) from error
            if record["event"] == "failed":
                raise self.failure(rank, record)
            values[rank] = record["value"]
        return values

    def _meet(self, rank_0_host: str) -> tuple[str, int]:
        host, port = LOOPBACK if self._cluster.is_local else rank_0_host, 0
        if self._options.torch_dist_address:
            host, port = split_address(self._options.torch_dist_address)
        opened = self._answers("meet", [self.actors[0].do.remote("meet", host, port, self.remaining_seconds())])[0]
        if opened is None:
            raise PortTakenError(f"{host}:{port}")
        return host, opened

    def _pin(self) -> tuple[str, ...]:
        options = self._options
        if self._cluster.is_local:
            from ray_parallel.workers.group._cuda import visible_gpus

            gpus = visible_gpus() if options.device != "cpu" else ()
            return pin(options.workers, options.gpu_indices, options.device, gpus)
        if options.gpu_indices:
            raise InvalidRequestError(
                f"gpu_indices {options.gpu_indices!r} counts the GPUs of this machine, but the workers run on a remote "
                "cluster, which hands out its own; leave it empty"
            )
        has_gpus = self._ray.cluster_resources().get("GPU", 0) >= options.workers
        if options.device == "cuda" and not has_gpus:
            raise InvalidRequestError(f"the cluster has no {options.workers} GPUs; start fewer workers")
        return ("any" if has_gpus and options.device != "cpu" else "",) * options.workers

    def _environment(self, seen: str) -> dict[str, str]:
        """Variables of a worker; those of this process are not touched."""
        options = self._options
        variables = {"OMP_NUM_THREADS": str(options.threads)}
        if seen != "any":
            variables |= {"CUDA_VISIBLE_DEVICES": seen, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        if self._cluster.is_local:
            loopback = "lo0" if sys.platform == "darwin" else "lo"
            variables |= {
                "PYTHONPATH": python_path(sys.path),
                "GLOO_SOCKET_IFNAME": loopback,
                "NCCL_SOCKET_IFNAME": loopback,
            }
        return variables | dict(options.environment)


def python_path(paths: Sequence[str]) -> str:
    """The folders where this process finds its modules, which a worker does not inherit.

    >>> python_path(["", "/nowhere", "/tmp", "/tmp"]).split(os.pathsep)[1:]
    ['/tmp']
    """
    folders = [os.path.abspath(path) for path in paths if Path(path).is_dir()]  # noqa: PTH100 ("" is the current one)
    return os.pathsep.join(dict.fromkeys(folders))
