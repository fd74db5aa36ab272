"""One small run in fp32 that finds a wrong plan before it is used.

In fp32 right plans differ from one process by rounding (at most 1e-6 of the largest value), wrong ones by 1e-3 and
more; in bf16 the two look alike.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ray_parallel._errors import ParallelError
from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._fit import blocks_of
from ray_parallel.sequence.plan._kernels import MaskKernel
from ray_parallel.sequence.plan._plan import Plan
from ray_parallel.sequence.running._attention import Mesh
from ray_parallel.sequence.running._engine import Parallel


class CanaryError(ParallelError):
    """A plan gave another result than one process does.

    Attributes:
        error: largest difference, relative to the largest value of the single-process result.
        tolerance: what was allowed.
    """

    def __init__(self, error: float, tolerance: float) -> None:
        self.error = error
        self.tolerance = tolerance
        super().__init__(
            f"the parallel result differs from the single-process one by {error:.1e} (allowed: {tolerance:.1e}); "
            "the plan does not fit this model and is not used"
        )


def canary(
    model: nn.Module,
    plan: Plan,
    mesh: Mesh,
    call: Callable[[nn.Module], Any],
    *,
    kernels: Mapping[str, MaskKernel] | None = None,
    whole: Collection[str] = (),
    depth: int | None = 2,
    tolerance: float = 1e-4,
) -> float:
    """Run a shallow fp32 copy of the model alone and in parallel, and compare.

    Every rank calls this, and all come to the same verdict. The model itself is not touched.

    Args:
        model: its weights are copied to fp32: all but the blocks, and `depth` blocks of each list.
        plan: the plan on trial.
        mesh: the ranks.
        call: runs the model it is given, on small fp32 inputs that are the same on all ranks, with more tokens than
            ranks; returns a tensor, or tensors in lists, tuples and dicts.
        kernels: functions for the plan's mask objects.
        whole: streams that every rank keeps whole.
        depth: how many blocks of each list; None: all, for models that count on their number.
        tolerance: allowed difference, relative to the largest value.

    Returns:
        the largest relative difference on any rank.

    Raises:
        CanaryError: it is larger than `tolerance`, or not a number, on any rank.
        PlanError: the plan does not fit the model.
    """
    return _compare(_shallow(model, plan, depth), plan, mesh, call, kernels or {}, whole, tolerance)


def at_first_call(
    model: nn.Module,
    plan: Plan,
    mesh: Mesh,
    *,
    kernels: Mapping[str, MaskKernel],
    whole: Collection[str],
    tolerance: float = 1e-4,
) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
    """The canary for a model whose inputs are not known yet: it takes the first call's, in fp32.

    Args:
        model: without a plan on it; its shallow copy is made now and kept until the trial is dropped.
        plan: the plan on trial.
        mesh: the ranks.
        kernels: functions for the plan's mask objects.
        whole: streams that every rank keeps whole.
        tolerance: allowed difference, relative to the largest value.

    Returns:
        the trial; it takes the arguments of a call, and raises as `canary` does.
    """
    small = _shallow(model, plan, 2)

    def trial(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        args, kwargs = _in_fp32(args), _in_fp32(kwargs)
        _compare(small, plan, mesh, lambda shallow: shallow(*args, **kwargs), kernels, whole, tolerance)

    return trial


def _compare(
    small: nn.Module,
    plan: Plan,
    mesh: Mesh,
    call: Callable[[nn.Module], Any],
    kernels: Mapping[str, MaskKernel],
    whole: Collection[str],
    tolerance: float,
) -> float:
    """The largest relative difference between one process and all ranks."""
    with torch.no_grad():
        want = flat(call(small))
        with Parallel(small, plan, mesh, kernels=kernels, whole=whole, check_ranks=True):
            got = flat(call(small))
    mine = ((got - want).abs().max() / want.abs().max().clamp_min(torch.finfo(torch.float32).tiny)).item()
    errors = [struct.unpack("d", message)[0] for message in mesh.world.agree(struct.pack("d", mine))]
    worst: float = max(error if error == error else float("inf") for error in errors)  # NaN is the worst
    if worst > tolerance:
        raise CanaryError(worst, tolerance)
    return worst


def _shallow(model: nn.Module, plan: Plan, depth: int | None) -> nn.Module:
    """A copy in fp32 with the first blocks of each list."""
    copies: dict[int, Any] = {}
    for name in (name for region in plan.regions for name in region.blocks):
        found = model.get_submodule(name) if blocks_of(model, name) else None
        if isinstance(found, nn.ModuleList):
            copies[id(found)] = nn.ModuleList(copy.deepcopy(block) for block in list(found)[:depth])
    return copy.deepcopy(model, copies).float().eval()


def _in_fp32(values: Any) -> Any:
    """The same values with fp32 in place of every other floating type; copies, because blocks may write into them."""
    return tree_map_only(
        Tensor, lambda one: one.to(torch.float32, copy=True) if one.is_floating_point() else one.clone(), values
    )


def flat(out: Any) -> Tensor:
    tensors = [tensor.float().reshape(-1) for tensor in _tensors(out)]
    if not tensors:
        raise PlanError(f"the canary's call returned no tensor but {type(out).__name__}")
    return torch.cat(tensors)


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, list | tuple):
        for part in out:
            yield from _tensors(part)
    elif isinstance(out, Mapping):
        for part in out.values():
            yield from _tensors(part)
