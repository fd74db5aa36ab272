"""The way in: a plan put on a model, by hand or as an injection of the host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ray_parallel.sequence.plan._compiled import without_compiler
from ray_parallel.sequence.plan._kernels import MaskKernel
from ray_parallel.sequence.plan._plan import Plan
from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.running._attention import Kind, Mesh
from ray_parallel.sequence.running._canary import at_first_call
from ray_parallel.sequence.running._canary import canary as run_canary
from ray_parallel.sequence.running._engine import Parallel


def parallelize(
    model: nn.Module,
    plan: Plan,
    comm: Comm | Mesh,
    *,
    kind: Kind = "ulysses",
    ulysses: int | None = None,
    shares: Sequence[float] | None = None,
    kernels: Mapping[str, MaskKernel] | None = None,
    whole: Collection[str] = (),
    preflight: bool = True,
    canary: Callable[[nn.Module], Any] | bool = False,
    only_in_calls: bool = False,
) -> Parallel:
    """Run `model` on all ranks of `comm` together, each holding part of the tokens between its blocks.

    Every rank calls this with the same plan on its own copy of the model, and then calls the model with the same
    arguments; every rank gets the whole result, the same bits on all. The model gets hooks and a wrapped forward, which
    `remove` takes off; modules of it that were compiled and get hooks run uncompiled until then.

    Args:
        model: in eval mode, weights equal on all ranks; runs without gradients.
        plan: how the architecture is cut.
        comm: this rank's end; or a `Mesh`, to use the same groups for several models.
        kind: "ulysses", "ring", "usp" or "all_gather".
        ulysses: for "usp", how many neighbours exchange heads; the rings have `comm.size // ulysses` members.
        shares: how much of the tokens and heads each rank gets, for unequal devices: (70, 30); None: equal parts. A
            `Mesh` brings its own.
        kernels: functions for the mask objects of the plan (`Opaque`), by name.
        whole: streams that every rank keeps whole, however long they are.
        preflight: compare plan, options and shapes over the ranks before each forward; one small message.
        canary: try the plan first, on a copy in fp32 with two blocks of each list (see `ray_parallel.sequence.canary`).
            A function runs the model it is given on small inputs, now; True waits for the first call and takes its
            inputs. Worth it at the first use of a plan with a model.
        only_in_calls: the plan acts inside `Parallel.call` only; the model called in any other way runs alone.

    Returns:
        a handle and context manager; `remove()` or leaving the block takes everything off.

    Raises:
        PlanError: the plan names something that the model does not have, or the kind does not go with the ranks.
        CanaryError: the plan gives another result than one process; with `canary=True` the first call raises it, and
            every call until one holds.

    Examples:
        >>> import torch
        >>> from ray_parallel.sequence import Attn, Plan, Region, Seq, run_threads
        >>> class Block(torch.nn.Module):
        ...     def forward(self, x):
        ...         q = x.unflatten(-1, (2, -1)).transpose(1, 2)
        ...         out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        ...         return x + out.transpose(1, 2).flatten(2)
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.blocks = torch.nn.ModuleList([Block(), Block()])
        ...     def forward(self, x):
        ...         for block in self.blocks:
        ...             x = block(x)
        ...         return x
        >>> plan = Plan(regions=[
        ...     Region(blocks="blocks", args={"x": Seq("v")}, out=Seq("v"), attn={"": Attn("v", "v")})])
        >>> x = torch.randn(1, 7, 8)
        >>> def rank(comm):
        ...     model = Model()
        ...     with parallelize(model, plan, comm):
        ...         return model(x)
        >>> [torch.allclose(y, Model()(x)) for y in run_threads(3, rank)]
        [True, True, True]
    """
    mesh = comm if isinstance(comm, Mesh) else Mesh.of(comm, kind, ulysses, shares)
    kernels = kernels or {}
    trial = at_first_call(without_compiler(model), plan, mesh, kernels=kernels, whole=whole) if canary is True else None
    if callable(canary):
        run_canary(without_compiler(model), plan, mesh, canary, kernels=kernels, whole=whole)
    return Parallel(
        model,
        plan,
        mesh,
        kernels=kernels,
        whole=whole,
        check_ranks=preflight,
        only_in_calls=only_in_calls,
        trial=trial,
    )


def injection(
    injection_class: Callable[[Callable[[Any], None], Callable[[Any], None]], Any],
    install: Callable[[nn.Module], Parallel],
) -> Any:
    """An injection for ComfyUI's model patcher, so that clones of a patched model inject and eject by themselves.

    Args:
        injection_class: the host's `PatcherInjection(inject, eject)`; this package imports nothing of the host.
        install: puts the plan on a diffusion model, `parallelize` with everything but the model filled in. Make the
            `Mesh` once, outside: making one is a collective call.

    Returns:
        `injection_class(inject, eject)`, to be given to `patcher.set_injections(key, [it])`.
    """
    installed: dict[int, Parallel] = {}

    def inject(patcher: Any) -> None:
        model = patcher.model.diffusion_model
        installed[id(model)] = install(model)

    def eject(patcher: Any) -> None:
        handle = installed.pop(id(patcher.model.diffusion_model), None)
        if handle is not None:
            handle.remove()

    return injection_class(inject, eject)
