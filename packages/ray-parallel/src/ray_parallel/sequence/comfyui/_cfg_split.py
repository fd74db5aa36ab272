"""Splits that need no plan because nothing passes between the parts: by CFG, and by the rows of a batch.

Both work for every architecture, convolutions included, and go together with a plan: split the ranks with `Comm.split`
into groups that run one plan each, and let the members at the same place of all groups share the conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ray_parallel._errors import ParallelError
from ray_parallel.sequence.plan._binding import Signature
from ray_parallel.sequence.plan._errors import ClosedWorldError
from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.ranks._layout import Span, cuts
from ray_parallel.sequence.ranks._preflight import preflight

Wrapper = Callable[..., Any]
"""wrapper(executor, *args, **kwargs): what ComfyUI calls instead of the step that it wraps."""


class SplitError(ParallelError):
    """A sampling run cannot be split by CFG or by data without changing its result."""


def cfg_split(comm: Comm, *, check_ranks: bool = True) -> Wrapper:
    """A `CALC_COND_BATCH` wrapper for ComfyUI: each rank evaluates some of the conditions, and all get every result.

    The others' condition lists are handed on as None, which the host skips; so texts of different lengths, areas and
    several conditions a list are left to it. With more ranks than conditions the last ones only receive; with one
    condition (cfg 1) every rank evaluates it.

    Args:
        comm: the ranks among which the conditions are shared out; each holds a separate model.
        check_ranks: compare the shapes of the call over the ranks before it; one small message.

    Returns:
        the wrapper, for `patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, wrapper)`. It raises
        `SplitError` when the host's own multigpu clones are in use, and `PreflightError` when the ranks disagree.
    """

    def wrapper(
        executor: Wrapper,
        model: Any,
        conditions: list[Any],
        x: Tensor,
        timestep: Any,
        model_options: Mapping[str, Any],
    ) -> list[Tensor]:
        refuse_clones(model_options)
        live = [place for place, listed in enumerate(conditions) if listed is not None]
        if comm.size == 1 or len(live) < 2:
            alone: list[Tensor] = executor(model, conditions, x, timestep, model_options)
            return alone
        if check_ranks:
            preflight(comm, "cfg", live, len(conditions), x, timestep)
        shares = [live[rank :: comm.size] for rank in range(comm.size)]
        mine = [listed if place in shares[comm.rank] else None for place, listed in enumerate(conditions)]
        out: list[Tensor] = list(executor(model, mine, x, timestep, model_options))
        for share, rows in zip(shares, _gathered(comm, out, shares), strict=True):
            for place, result in zip(share, rows, strict=True):
                out[place] = result.view_as(out[place])
        return out

    return wrapper


def _gathered(comm: Comm, out: Sequence[Tensor], shares: Sequence[Sequence[int]]) -> Iterator[Sequence[Tensor]]:
    """For every rank the flat results of its share."""
    sizes = [[out[place].numel() for place in share] for share in shares]
    mine = [out[place].reshape(-1) for place in shares[comm.rank]] or [out[0].new_empty(0)]
    parts = comm.all_gather(torch.cat(mine), [sum(counts) for counts in sizes])
    return (torch.split(part, counts) if counts else () for part, counts in zip(parts, sizes, strict=True))


def refuse_clones(model_options: Mapping[str, Any]) -> None:
    """Do not split a second time what the host splits over its own devices.

    Raises:
        SplitError: the host's multigpu clones are in use.
    """
    if model_options.get("multigpu_clones"):
        raise SplitError(
            "this model already runs on the host's own multigpu clones, which share out the same conditions; "
            "remove the host's multigpu node, or do without the split"
        )


@contextmanager
def batch_split(model: nn.Module, comm: Comm, *, rows: Collection[str], whole: Collection[str] = ()) -> Iterator[None]:
    """While entered, each rank runs its share of the rows of a batched call, and every rank gets all results.

    For loops that put the conditional and the unconditional input into one batch, as diffusers' pipelines do: with two
    ranks each evaluates one of them. Hooks do it, so the loop is unchanged; enter it after `parallelize` if the model
    has a plan, whose ranks then are another group.

    Args:
        model: in eval mode; its rows do not depend on each other. It returns tensors that begin with the rows, alone,
            in a tuple or list, or in a mapping such as diffusers' output classes.
        comm: the ranks among which the rows are shared out.
        rows: arguments of the model's forward that have one row an entry of the batch; one row counts for all.
        whole: arguments that hold no rows.

    Raises:
        ClosedWorldError: while running, the model was called with an argument that is in neither list.
        SplitError: while running, arguments or results do not have the rows.
        PreflightError: while running, the ranks made different calls.

    Examples:
        >>> import torch
        >>> from ray_parallel.sequence import run_threads
        >>> def rank(comm):
        ...     model = torch.nn.Linear(2, 1, bias=False).requires_grad_(False)
        ...     model.weight.fill_(1.0)
        ...     with batch_split(model, comm, rows=("input",)):
        ...         return model(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        >>> run_threads(2, rank)
        [[[3.0], [7.0]], [[3.0], [7.0]]]
    """
    signature = Signature(model)
    spans: list[tuple[Span, ...]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(args, kwargs)
        given = bound.given()
        unknown = [name for name in given if name not in rows and name not in whole]
        if unknown:
            raise ClosedWorldError(type(module).__name__, unknown)
        preflight(comm, "rows", given)
        batched = {name: value for name, value in given.items() if name in rows}
        count = _count(batched)
        spans[:] = [cuts(count, comm.size)]
        start, end = share(spans[0], comm.rank)
        for name, value in batched.items():
            bound.replace(name, _take(value, count, start, end))
        return bound.call()

    def after(module: nn.Module, args: Any, out: Any) -> Any:
        return _all_rows(out, spans[0], comm)

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        model.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def share(spans: Sequence[Span], rank: int) -> Span:
    """The rows that a rank runs: its own ones, or the first row when there are too few, because models need one."""
    start, end = spans[rank]
    return (start, end) if end > start else (0, 1)


def join_rows(out: Tensor, spans: Sequence[Span], comm: Comm) -> Tensor:
    """All rows from the shares of all ranks.

    Raises:
        SplitError: the result does not have the rows that were run.
    """
    start, end = share(spans, comm.rank)
    if not out.ndim or out.shape[0] != end - start:
        raise SplitError(
            f"{end - start} rows went in and a tensor of shape {tuple(out.shape)} came out; results that have no rows "
            "cannot be put together: run the model without the split"
        )
    own = spans[comm.rank][1] - spans[comm.rank][0]
    per_row = out[0].numel()
    parts = comm.all_gather(out[:own].reshape(-1), [(b - a) * per_row for a, b in spans])
    return torch.cat([part.view(-1, *out.shape[1:]) for part in parts])


def _count(values: Mapping[str, Any]) -> int:
    found = {tensor.shape[0] for value in values.values() for tensor in _tensors(value)} - {1} or {1}
    if len(found) > 1:
        raise SplitError(f"{', '.join(values)} have {sorted(found)} rows; all need the same number, or one")
    return found.pop()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.ndim:
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    else:
        raise SplitError(f"a {type(value).__name__} has no rows to share out; name the argument in whole")


def _take(value: Any, count: int, start: int, end: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:end] if value.shape[0] == count else value
    return type(value)(_take(part, count, start, end) for part in value)


def _all_rows(out: Any, spans: Sequence[Span], comm: Comm) -> Any:
    if isinstance(out, Tensor):
        return join_rows(out, spans, comm)
    if isinstance(out, Mapping):
        return type(out)(**{name: _all_rows(part, spans, comm) for name, part in out.items()})
    if isinstance(out, list | tuple):
        return type(out)(_all_rows(part, spans, comm) for part in out)
    raise SplitError(f"a {type(out).__name__} cannot be put together from rows; let the model return tensors")
