"""Branches on sizes are read from the source of a forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_parallel.sequence.deriving._branches import length_branches


class Branch(nn.Module):
    """Holds one forward after the other, for the reader of branches."""


def plain(self: Any, x: Tensor) -> Tensor:
    return x if self.training else x + x.shape[1]


def direct(self: Any, x: Tensor) -> Tensor:
    return x if x.shape[1] > 7 else -x


def by_call(self: Any, x: Tensor) -> Tensor:
    if self.training and not x.size(1) % 2:
        return x
    return -x


def through_names(self: Any, x: Tensor) -> Tensor:
    _, tokens, *_ = x.shape
    pairs = tokens // 2
    while pairs > 9:
        pairs -= 1
    return x


def through_a_flag(self: Any, x: Tensor) -> Tensor:
    long = x.numel() > 100
    return x if long else -x


def of_a_tensor_made_with_a_size(self: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape[1]) if self.training else None
    return x if mask is None else x + mask


@pytest.mark.parametrize(
    ("forward", "condition"),
    [
        (plain, None),
        (direct, "x.shape[1] > 7"),
        (by_call, "self.training and (not x.size(1) % 2)"),
        (through_names, "pairs > 9"),
        (through_a_flag, "long"),
        (of_a_tensor_made_with_a_size, None),
    ],
)
def test_branches_on_sizes_are_read_from_the_source(
    forward: Any, condition: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Branch, "forward", forward)
    assert length_branches([Branch(), Branch()]) == (
        [] if condition is None else [f"Branch.forward branches on a size: {condition}"]
    )


def test_a_forward_without_source_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {}
    exec("def forward(self, x):\n    return x", namespace)
    monkeypatch.setattr(Branch, "forward", namespace["forward"])
    assert length_branches([Branch()]) == ["Branch.forward has no source to look at"]
