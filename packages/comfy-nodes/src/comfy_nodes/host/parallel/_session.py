"""One sampling run on several devices: a thread for each, the host's own copy of the model on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from comfy_nodes.host.parallel._seam import Call
from ray_parallel.sequence import Kind, Mesh, Parallel, ThreadComm, ThreadTeam, parallelize
from ray_parallel.sequence.plans import plan_for

PATCHES = "patches"


class Session:
    """The ranks of one sampling run.

    Args:
        patchers: the host's MODEL of each rank, on its device; rank 0 is the one that the sampler calls.
        kind: how attention is split.
    """

    def __init__(self, patchers: Sequence[Any], kind: Kind) -> None:
        self._patchers = tuple(patchers)
        self._kind = kind
        self._team = ThreadTeam([patcher.load_device for patcher in patchers])
        self._handles: list[Parallel | None] = [None] * len(self._patchers)

    def forward(self, call: Call) -> Any:
        """Compute one call of the diffusion model on all ranks; the result is on the first one's device."""
        hooks = self._patchers[0].current_hooks

        def rank(comm: ThreadComm) -> Any:
            patcher = self._patchers[comm.rank]
            handle = self._handle(comm)
            mine = call
            if comm.rank:
                patcher.apply_hooks(hooks)
                mine = _moved(call, patcher.load_device)
            return mine.with_options(_once(mine.options, comm)).on(handle.call)

        return self._team.run(rank)[0]

    def close(self) -> None:
        """Take the plans off the models and end the threads."""
        try:
            for handle in self._handles:
                if handle is not None:
                    handle.remove()
        finally:
            self._team.close()

    def _handle(self, comm: ThreadComm) -> Parallel:
        handle = self._handles[comm.rank]
        if handle is None:
            model = self._patchers[comm.rank].model.diffusion_model
            entry = plan_for(model)
            mesh = Mesh.of(comm, self._kind)
            handle = parallelize(model, entry.plan, mesh, kernels=entry.kernels, only_in_calls=True)
            self._handles[comm.rank] = handle
        return handle


def _moved(call: Call, device: torch.device) -> Call:
    """The call with its tensors on another device; objects that are no containers are the same ones."""

    def move(value: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), value)

    return Call(args=move(call.args), kwargs=move(call.kwargs), options=move(call.options), place=call.place)


def _once(options: Any, comm: ThreadComm) -> dict[str, Any]:
    """Options whose patches run on the first rank alone: they may count their calls, and hold tensors of one device."""

    def on_first(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda values: comm.on_first(lambda: patch(values))

    patches = {name: [on_first(patch) for patch in entries] for name, entries in options.get(PATCHES, {}).items()}
    return {**options, PATCHES: patches} if patches else dict(options)
