"""LTX's modulation, cut for one rank by hand: for code that does not use a plan, under the name it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._plan import Compressed
from ray_parallel.sequence.ranks._layout import Layout
from ray_parallel.sequence.running._values import cut

_STREAM = "tokens"


def process_usp_timestep(timestep: Any, *, tokens: int, ranks: int, rank: int, unit: int = 1) -> Any:
    """The part of a timestep embedding that belongs to the tokens of one rank.

    Rows stay as compressed as they come. An object with one row a frame (ComfyUI's `CompressedTimestep`) is sliced
    where frames begin and end; where a rank begins or ends inside of a frame it becomes an object of a subclass that
    knows how many tokens of each frame it has, and is exact as well. It shares the memory of the whole one. Nothing is
    padded, and one row that counts for all tokens counts for all ranks.

    A plan does the same by itself: `Compressed`.

    Args:
        timestep: a compressed object; a tensor [B, rows, ...] with one row a token, a frame, or for all; a tensor
            without rows [B]; None; or any of them in lists, tuples and dicts.
        tokens: of the whole sequence.
        ranks: number of ranks.
        rank: whose part it is.
        unit: tokens that stay together, as in the cut of the hidden state; 1 cuts anywhere.

    Returns:
        the same form, with the rows of this rank.

    Raises:
        PlanError: the rows do not describe `tokens` tokens, `unit` does not divide them, or a value has no rows.

    Examples:
        >>> import torch
        >>> rows = torch.arange(5.0).view(1, 5, 1)
        >>> [process_usp_timestep(rows, tokens=5, ranks=2, rank=rank).flatten().tolist() for rank in (0, 1)]
        [[0.0, 1.0, 2.0], [3.0, 4.0]]
        >>> process_usp_timestep(rows[:, :1], tokens=5, ranks=2, rank=1).flatten().tolist()
        [0.0]
    """
    if not 0 <= rank < ranks:
        raise PlanError(f"there is no rank {rank} among {ranks}; ranks count from 0")
    layout = Layout.of({_STREAM: tokens}, ranks=ranks, rank=rank, units={_STREAM: unit})
    return _part(timestep, layout)


def _part(value: Any, layout: Layout) -> Any:
    if value is None or (isinstance(value, Tensor) and value.ndim < 2):
        return value
    if isinstance(value, Mapping):
        return {name: _part(entry, layout) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_part(entry, layout) for entry in value)
    if isinstance(value, Tensor) or hasattr(value, "patches_per_frame"):
        return cut(value, Compressed(_STREAM), layout)
    raise PlanError(f"a {type(value).__name__} has no rows to cut; hand over tensors or compressed timesteps")
