"""What runs in the process of a worker: it joins the others, loads once, and runs functions by name."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # exported, but not in __all__

from ray_parallel._errors import ParallelError
from ray_parallel.workers.cluster._errors import PortTakenError
from ray_parallel.workers.cluster._rendezvous import join_meeting, open_meeting
from ray_parallel.workers.group._context import StoppedAtStep, WorkerContext
from ray_parallel.workers.group._names import resolve
from ray_parallel.workers.group._versions import versions
from ray_parallel.workers.weights._plain import Plain, decode, encode
from ray_parallel.workers.weights._shared import SharedWeights

Record = dict[str, Any]
"""What a worker answers: plain data with the key ``"event"``, a failure included, so that no exception is pickled."""


class Worker:
    """The actor. `do` runs one step of its life, `run` a function of the user's; the rest answers meanwhile."""

    def __init__(self, rank: int, size: int, generation: int) -> None:
        self._place = {"rank": rank, "size": size, "generation": generation}
        self._context: WorkerContext | None = None
        self._store: Store | None = None
        self._control: dist.ProcessGroup | None = None
        self._loaded: Any = None
        self._cancelled: set[int] = set()

    def do(self, step: str, *arguments: Any) -> Record:
        """Run one of the steps below by its name."""
        steps: dict[str, Callable[..., Any]] = {
            "hello": self._hello,
            "sees": self._sees,
            "meet": self._meet,
            "join": self._join,
            "load": self._load,
            "share": self._share,
        }
        try:
            return {"event": "done", "value": steps[step](*arguments)}
        except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it there
            return _failure(error)

    def run(self, call: int, function: str, arguments: Mapping[str, Plain]) -> Iterator[Record]:
        """Run a function and yield its progress as it comes, then how it ended."""
        records: SimpleQueue[Record] = SimpleQueue()
        thread = threading.Thread(target=self._work, args=(call, function, arguments, records.put), daemon=True)
        thread.start()
        while True:
            record = records.get()
            yield record
            if record["event"] != "step":
                thread.join()
                return

    def cancel(self, call: int) -> None:
        """Let a call end at its next step."""
        self._cancelled.add(call)

    def ping(self) -> bool:
        """Answer, also while a call is running."""
        return True

    def _work(self, call: int, function: str, arguments: Mapping[str, Plain], emit: Callable[[Record], None]) -> None:
        try:
            context = self._context
            if context is None:
                raise RuntimeError("the worker was not loaded")
            context._emit, context._wants_stop = emit, lambda: call in self._cancelled
            result = resolve(function)(context, self._loaded, **decode(arguments))
            if context.weights is not None:
                context.weights.require_unwritten()
            record: Record = {"event": "done", "value": encode(result, f"the result of {function}")}
        except StoppedAtStep as stopped:
            record = {"event": "cancelled", "step": stopped.step}
        except BaseException as error:  # noqa: BLE001 - sys.exit included: the driver waits for an answer
            record = _failure(error)
        self._cancelled.discard(call)
        emit(record)

    def _hello(self) -> Record:
        from ray.util import get_node_ip_address

        host = get_node_ip_address()  # type: ignore[no-untyped-call]
        return {"versions": versions(), "pid": os.getpid(), "host": str(host)}

    def _sees(self, weights: SharedWeights) -> bool:
        return weights.are_here()

    def _meet(self, host: str, port: int, seconds: float) -> int | None:
        """Open the meeting point (rank 0) and return its port, or None when that is taken."""
        try:
            self._store, found = open_meeting(host, port, timedelta(seconds=seconds))
        except PortTakenError:
            return None
        return found

    def _join(self, host: str, port: int, on_gpu: bool, join_seconds: float, call_seconds: float) -> None:
        rank, size = self._place["rank"], self._place["size"]
        device = torch.device("cpu")
        if on_gpu:
            from ray_parallel.workers.group._cuda import take_only_gpu

            device = take_only_gpu()
        if size > 1:
            store = self._store or join_meeting(host, port, timedelta(seconds=join_seconds))
            timeout = timedelta(seconds=call_seconds)
            backend = "nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            # Cancelling never waits for the GPU, and never mixes with the collectives of the model.
            control = dist.new_group(backend="gloo", timeout=timeout)
            self._control = control if isinstance(control, dist.ProcessGroup) else None
        self._context = WorkerContext(**self._place, device=device, weights=None)
        self._context._control = self._control

    def _load(self, factory: str | None, arguments: Mapping[str, Plain], weights: SharedWeights | None) -> None:
        if self._context is None:
            raise RuntimeError("the worker did not join the others")
        if weights is not None:
            self._context.weights = weights.open(protected=True)
        if factory is not None:
            self._loaded = resolve(factory)(self._context, **decode(arguments))

    def _share(self) -> Record | None:
        """What the weights take here, all of them resident."""
        if self._context is None or self._context.weights is None:
            return None
        self._context.weights.touch()
        share = self._context.weights.share()
        return None if share is None else {name: getattr(share, name) for name in share.__slots__}


def _failure(error: BaseException) -> Record:
    kind = type(error)
    return {
        "event": "failed",
        "kind": f"{kind.__module__}.{kind.__qualname__}",
        "reason": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "refused": isinstance(error, ParallelError) and error.is_refusal,
    }
