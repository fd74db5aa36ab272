"""Before a forward: do all ranks mean the same thing? One small message says so, not a hang or a dead process."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ray_parallel._errors import ParallelError
from ray_parallel.sequence.ranks._comm import Comm


class PreflightError(ParallelError):
    """The ranks are about to run different things.

    Attributes:
        ranks: those that disagree with the majority.
    """

    def __init__(self, ranks: Sequence[int], size: int, mine: str) -> None:
        self.ranks = tuple(ranks)
        super().__init__(
            f"rank {', '.join(map(str, self.ranks))} of {size} would run another plan, other shapes or other options "
            f"than the rest, so no rank starts; give every rank the same call. This rank was called with: {mine}"
        )


def preflight(comm: Comm, *meaning: Any) -> None:
    """Compare what the ranks are about to do.

    Args:
        comm: all ranks.
        meaning: plan, options, arguments. Tensors count by shape and type, plain values by their value, containers by
            what they hold, anything else by its class.

    Raises:
        PreflightError: on every rank, when any two differ.
    """
    text = describe(meaning)
    digests = comm.agree(hashlib.sha256(text.encode()).digest())
    common, count = Counter(digests).most_common(1)[0]
    if count < len(digests):
        raise PreflightError([rank for rank, digest in enumerate(digests) if digest != common], comm.size, text)


def describe(value: Any) -> str:
    """What `preflight` compares, as text.

    Examples:
        >>> import torch
        >>> describe({"x": torch.zeros(1, 3), "steps": 4, "hook": print})
        '{hook: builtin_function_or_method, steps: 4, x: float32[1, 3]}'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return "{" + ", ".join(f"{_key(key)}: {describe(part)}" for key, part in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe, value)) + "]"
    return type(value).__name__


def _key(key: Any) -> str:
    return str(key) if isinstance(key, str | int | tuple) else type(key).__name__
