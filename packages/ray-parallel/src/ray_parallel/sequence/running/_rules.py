"""From a caught attention call to the rule of the module that made it, and on to the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._kernels import MaskKernel
from ray_parallel.sequence.plan._plan import Attn, Region, Seq
from ray_parallel.sequence.ranks._exchange import gather
from ray_parallel.sequence.ranks._layout import Layout
from ray_parallel.sequence.running._attention import Call, Mesh, attend
from ray_parallel.sequence.running._catch import Caught
from ray_parallel.sequence.running._values import Deferred


class UncutAttentionError(PlanError):
    """Attention ran inside a cut region where the plan has no rule for it, or could not be caught there."""


@dataclass(slots=True)
class Frame:
    """A module that is running inside a cut region, with its rule and the attention calls caught so far."""

    where: str
    rule: Attn | None
    caught: int = 0


@dataclass(slots=True)
class Forward:
    """What is true while the model runs once.

    Attributes:
        region: the one that is open.
        settled: the same for the arguments it was opened with.
        layout: its shards.
        frames: the modules that are running, the innermost last.
        cuts: argument name -> the whole value that came last and its part, for what comes again with every block.
        lengths: tokens of every stream met so far.
        control: the residuals that the model was called with.
        inputs: lists that the model was called with, beside their whole tensors and what those are.
        plain: no override of the host is in the way, so attention may be done in parts.
        inside_kernel: a whole-sequence attention is running; what it calls is not ours.
    """

    region: Region | None = None
    settled: Region | None = None
    layout: Layout | None = None
    frames: list[Frame] = field(default_factory=list)
    cuts: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    inputs: list[tuple[list[Any], tuple[Any, ...], Seq]] = field(default_factory=list)
    plain: bool = True
    inside_kernel: bool = False


def run_rule(forward: Forward, mesh: Mesh, kernels: Mapping[str, MaskKernel], caught: Caught) -> Tensor | None:
    """Do a caught call as the rule of the innermost module says: [B, S, H, D], or None when nothing is cut here.

    Raises:
        UncutAttentionError: there is no rule, or the call cannot be done on cut sequences.
        PlanError: the rule does not fit the tensors.
    """
    if forward.inside_kernel or forward.region is None or forward.layout is None or not forward.frames:
        return None
    frame, layout = forward.frames[-1], forward.layout
    if frame.rule is None:
        raise UncutAttentionError(
            f"attention ran in {frame.where}, for which the plan has no rule; it would see this rank's tokens only: "
            "add the module that calls it to attn"
        )
    frame.caught += 1
    rule = _fitting(frame.where, frame.rule, layout, caught)
    _check(frame.where, rule, layout, caught)

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        forward.inside_kernel = True
        try:
            if isinstance(mask, Deferred):
                return kernels[mask.kernel](mask.mask, q, k, v, caught.kernel)
            return caught.kernel(q, k, v, mask)
        finally:
            forward.inside_kernel = False

    call = Call(
        q=caught.q,
        k=caught.k,
        v=caught.v,
        q_streams=rule.q,
        kv_streams=rule.kv,
        mask=_whole_mask(mesh, layout, rule, caught.mask),
        scale=caught.scale,
        kernel=kernel,
        plain=forward.plain and not isinstance(caught.mask, Deferred),
    )
    return attend(mesh, layout, call)


def _fitting(where: str, rule: Attn, layout: Layout, caught: Caught) -> Attn:
    """The one of a module's rules that fits the numbers of queries and keys."""
    queries, keys = caught.q.shape[1], caught.k.shape[1]
    held = {way: (layout.size(way.q), layout.size(way.kv)) for way in rule.ways()}
    fits = [r for r, (q, kv) in held.items() if (not r.q or q == queries) and (not r.kv or kv == keys)]
    if len(fits) != 1:
        wanted = "; ".join(
            f"{', '.join(r.q) or 'whole'} over {', '.join(r.kv) or 'whole'} ({q} over {kv} here)"
            for r, (q, kv) in held.items()
        )
        raise PlanError(f"{where}: {queries} queries over {keys} keys, but its rule is {wanted}: it does not fit")
    return fits[0]


def _check(where: str, rule: Attn, layout: Layout, caught: Caught) -> None:
    if caught.obstacles:
        raise UncutAttentionError(f"attention in {where} cannot run on cut sequences: {caught.obstacles[0]}")
    if any(tensor.requires_grad for tensor in (caught.q, caught.k, caught.v)):
        raise UncutAttentionError("gradients do not pass between ranks; run the model under torch.no_grad()")
    if isinstance(caught.mask, Deferred) and layout.cut_streams(rule.q) and not layout.cut_streams(rule.kv):
        raise PlanError(f"{where}: a mask object needs whole queries, which its rule {rule} never puts together")


def _whole_mask(mesh: Mesh, layout: Layout, rule: Attn, mask: Any) -> Any:
    """A tensor mask over the whole sequences, four-dimensional; blocks may have built it from what they hold."""
    if not isinstance(mask, Tensor):
        return mask
    if mask.ndim not in (2, 4):
        raise PlanError(f"a mask of shape {tuple(mask.shape)} is not understood; give it 2 or 4 dimensions")
    mask = mask if mask.ndim == 4 else mask[None, None]
    return _whole_side(mesh, layout, rule.kv, _whole_side(mesh, layout, rule.q, mask, 2), 3)


def _whole_side(mesh: Mesh, layout: Layout, streams: Sequence[str], mask: Tensor, dim: int) -> Tensor:
    size = mask.shape[dim]
    if not layout.cut_streams(streams) or size == layout.full(streams):
        return mask
    held = layout.size(streams)
    if size not in (1, held):
        raise PlanError(
            f"a mask of shape {tuple(mask.shape)} covers neither the {layout.full(streams)} tokens of "
            f"{', '.join(streams)} nor the {held} of this rank"
        )
    is_cut = size == held and size != 1
    if 1 in layout.held_sizes(streams):  # a rank with one token cannot tell "cut" from "the same for all"
        is_cut = any(vote == b"\1" for vote in mesh.world.agree(bytes([is_cut])))
    return gather(mesh.world, layout, [mask], streams, dim)[0] if is_cut else mask
