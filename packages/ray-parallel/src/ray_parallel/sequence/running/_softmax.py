"""Attention in parts: a kernel that also returns the log-sum-exp, and the fp32 merge that puts parts together.

With `l` the log-sum-exp of the scores of a part and `o` its output, two parts merge to `l = log(e^l1 + e^l2)` and
`o = o1 e^(l1 - l) + o2 e^(l2 - l)` (Liu et al. 2023, arXiv:2310.01889; Milakov and Gimelshein 2018, arXiv:1805.02867).
A part in which everything is masked has `l = -inf` and weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError

_SCORES_AT_ONCE = 2**26
"""Scores that the kernel without a fused form holds at a time: 256 MiB in fp32."""


@dataclass(frozen=True, slots=True)
class Part:
    """Attention over some of the keys: `out` [B, H, S, D] and `lse` [B, H, S], both fp32."""

    out: Tensor
    lse: Tensor

    def merge(self, other: Part) -> Part:
        """Attention over the keys of both."""
        top = torch.maximum(self.lse, other.lse)
        finite = top.masked_fill(top == -torch.inf, 0.0)
        mine, theirs = (self.lse - finite).exp(), (other.lse - finite).exp()
        total = mine + theirs
        weight = torch.where(total > 0, mine / total, 0.0)[..., None]
        return Part(other.out + (self.out - other.out) * weight, top + total.clamp_min(1.0).log())


def without_drowned(q: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Queries and mask for attention in parts, when the mask may hide all keys by a huge finite number.

    Scores drown in such a number and all keys weigh alike. So would the log-sum-exp, by which parts are merged: these
    rows get no scores and no mask instead.

    Args:
        q: [B, H, S, D].
        mask: of these queries over all keys of all parts.
    """
    if mask is None or mask.dtype == torch.bool:
        return q, mask
    highest = mask.amax(-1, keepdim=True)
    drowned = (highest < -1e30) & (highest > -torch.inf)
    return q.masked_fill(drowned, 0.0), mask.masked_fill(drowned, 0.0)


def partial_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Part:
    """Softmax attention over the given keys, with its log-sum-exp.

    Args:
        q: [B, H, S, D].
        k: [B, Hk, T, D]; Hk divides H.
        v: [B, Hk, T, Dv].
        mask: added to the scores, or boolean with False for "not this one"; broadcast to [B, H, S, T].
        scale: of the scores; None: D ** -0.5.

    Raises:
        PlanError: the mask holds integers, which some kernels add to the scores and others refuse.
    """
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise PlanError(
            f"an attention mask of {str(mask.dtype).removeprefix('torch.')} has no one meaning; make it boolean (True: "
            "attend), or floating-point numbers to add to the scores"
        )
    if k.shape[1] != q.shape[1]:
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    if not q.numel() or not k.numel():
        shape = q.shape[:3]
        out = torch.zeros(*shape, v.shape[3], dtype=torch.float32, device=q.device)
        return Part(out, torch.full(shape, -torch.inf, dtype=torch.float32, device=q.device))
    if q.device.type == "cpu" and q.shape[3] == v.shape[3]:
        mask = None if mask is None else mask.to(q.dtype)
        bias = None if mask is None else mask.expand(*q.shape[:3], k.shape[2])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
        if mask is not None:  # the kernel reports 0 for a row in which everything is masked
            lse = lse.masked_fill((mask == -torch.inf).all(-1), -torch.inf)
    elif mask is None and _flash_takes(q, v):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    else:
        out, lse = _plain(q, k, v, mask, q.shape[3] ** -0.5 if scale is None else scale)
    lse = lse.float()
    return Part(out.float().masked_fill((lse == -torch.inf)[..., None], 0.0), lse)


def _flash_takes(q: Tensor, v: Tensor) -> bool:
    fits = q.shape[3] == v.shape[3] and q.shape[3] % 8 == 0 and q.shape[3] <= 256
    return fits and q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Scores in fp32, some rows at a time."""
    rows = max(1, _SCORES_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    outs, lses = [], []
    for start in range(0, q.shape[2], rows):
        scores = (q[:, :, start : start + rows].float() @ k.float().transpose(-1, -2)) * scale
        if mask is not None:
            scores = scores + (mask if mask.shape[-2] == 1 else mask[..., start : start + rows, :]).float()
        lse = scores.logsumexp(-1)
        finite = lse.masked_fill(lse == -torch.inf, 0.0)
        outs.append((scores - finite[..., None]).exp() @ v.float())
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)
