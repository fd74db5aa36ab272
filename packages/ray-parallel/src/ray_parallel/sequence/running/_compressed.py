"""Rows that stay compressed: an object with one row a frame, cut where a rank's tokens begin and end.

Expanding first and cutting then would cost a row a token: 672 MiB instead of 1.8 MiB for 121 frames of 768 x 512.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.ranks._layout import Span

_ATTRIBUTES = ("data", "batch_size", "num_frames", "patches_per_frame", "feature_dim")


def cut_compressed(rows: Any, held: Span, tokens: int) -> Any:
    """The rows of the tokens `held`, as an object of the same class, or of a subclass when a frame is torn.

    Args:
        rows: `data` [B, frames, F], `num_frames`, `patches_per_frame`, `batch_size`, `feature_dim`.
        held: the tokens of this rank.
        tokens: of all ranks together.

    Raises:
        PlanError: the object describes another number of tokens.
    """
    per_frame = rows.patches_per_frame
    if rows.num_frames == 1 and per_frame != tokens:
        return rows
    if rows.num_frames * per_frame != tokens:
        raise PlanError(
            f"{rows.num_frames} frames of {per_frame} tokens do not describe {tokens} tokens; check the stream"
        )
    start, end = held
    first, last = start // per_frame, -(-end // per_frame)
    whole = start % per_frame == 0 and end % per_frame == 0
    kind: Any = type(rows)
    part = copy.copy(rows) if whole else object.__new__(_torn(kind))
    for name in _ATTRIBUTES:
        setattr(part, name, getattr(rows, name))
    part.data = rows.data[:, first:last]
    part.num_frames = last - first
    if not whole:
        frames = range(first, last)
        counts = [min(end, (frame + 1) * per_frame) - max(start, frame * per_frame) for frame in frames]
        part.tokens_of_frame = torch.tensor(counts)
    return part


@cache
def _torn(kind: Any) -> type[Any]:
    """`kind`, with frames that have different numbers of tokens."""

    def expand(self: Any) -> Tensor:
        return _repeat(self.data, self.tokens_of_frame)

    def expand_for_computation(
        self: Any, scale_shift_table: Tensor, batch_size: int, indices: slice = slice(None)
    ) -> tuple[Tensor, ...]:
        parameters = scale_shift_table.shape[0]
        rows = self.data.reshape(batch_size, self.num_frames, parameters, -1)[:, :, indices]
        table = scale_shift_table[indices][None, None].to(device=rows.device, dtype=rows.dtype)
        return tuple(_repeat(value, self.tokens_of_frame) for value in (table + rows).unbind(2))

    body = {
        "__slots__": ("tokens_of_frame",),
        "__doc__": "Rows of frames of which the first or the last is held in part.",
        "expand": expand,
        "expand_for_computation": expand_for_computation,
    }
    return type(f"Torn{kind.__name__}", (kind,), body)


def _repeat(rows: Tensor, counts: Tensor) -> Tensor:
    return rows.repeat_interleave(counts.to(rows.device), 1)
