"""Low-rank adapters (LoRA) beside the weights instead of in them.

`(W + s * up @ down) @ x` is `W @ x + s * up @ (down @ x)`: a term of a few small products, however the weight is
encoded. Nothing is patched, so that nothing has to be dequantised, rounded again or restored, and a change of strength
is a change of a number. The adapters of a layer are kept as one pair of factors: ten cost little more than one.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gguf_loader._errors import GgufLoraError, quoted

_MOST = torch.finfo(torch.float32).max


def require_finite(what: str, number: object) -> None:
    """Refuse what is no finite number.

    Raises:
        GgufLoraError: it is NaN, infinite, a bool or not a number at all.
    """
    if isinstance(number, bool) or not isinstance(number, int | float) or not -_MOST <= number <= _MOST:
        shown = "too large" if type(number) is int else quoted(number)
        raise GgufLoraError(f"{what} is {shown}", remedy="pass a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """One adapter for one layer.

    Attributes:
        down: (rank, in_features), often called lora_A.
        up: (out_features, rank), often called lora_B.
        alpha: the scale of the adapter, times 1 / rank; rank when None.
        bias: (out_features,), what the adapter adds to the bias at strength 1, whatever alpha; None adds nothing.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        are_matrices = self.down.ndim == 2 and self.up.ndim == 2
        if not are_matrices or not self.down.shape[0] == self.up.shape[1] > 0:
            raise GgufLoraError(
                f"factors of shapes {tuple(self.down.shape)} and {tuple(self.up.shape)} are no low-rank pair",
                remedy="down is (rank, in_features), up is (out_features, rank), with a rank of 1 or more",
            )
        if self.alpha is not None:
            require_finite("alpha", self.alpha)
        if self.bias is not None and self.bias.shape != self.up.shape[:1]:
            raise GgufLoraError(
                f"a bias of shape {tuple(self.bias.shape)} for {self.up.shape[0]} features",
                remedy="the bias of an adapter is (out_features,)",
            )

    @property
    def rank(self) -> int:
        """The number of directions that the adapter adds."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by at strength 1."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class _Share:
    """What belongs to one adapter in the joint factors: so many rows, their factor, and perhaps a row of the biases."""

    rank: int
    scale: float
    strength: float
    has_bias: bool


class LowRankTerms(nn.Module):
    """All adapters of one layer: `x -> sum of strength * (scale * up @ down @ x + bias)`.

    The factors are buffers that are not saved, so that they move with the layer and do not show in its state dict.

    Args:
        in_features: of the layer.
        out_features: of the layer.
        dtype: of the factors and of the term.
        device: of the layer.
    """

    down: Tensor
    up: Tensor
    factors: Tensor
    biases: Tensor
    bias: Tensor | None
    handle: RemovableHandle | None = None

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._shares: dict[str, _Share] = {}
        # A compiled forward looks at this one flag, so that a change of strength does not compile it again.
        self._is_active = False
        self.register_buffer("down", torch.empty(0, in_features, dtype=dtype, device=device), persistent=False)
        self.register_buffer("up", torch.empty(out_features, 0, dtype=dtype, device=device), persistent=False)
        self.register_buffer("factors", torch.empty(0, device=device), persistent=False)
        self.register_buffer("biases", torch.empty(0, out_features, device=device), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    @property
    def strengths(self) -> Mapping[str, float]:
        """Strength by adapter."""
        return {name: share.strength for name, share in self._shares.items()}

    def require_fit(self, name: str, adapter: LowRank) -> None:
        """Refuse an adapter whose factors do not fit the layer.

        Raises:
            GgufLoraError: it does not fit.
        """
        layer, found = (self.down.shape[1], self.up.shape[0]), (adapter.down.shape[1], adapter.up.shape[0])
        if found != layer:
            raise GgufLoraError(
                f"adapter {quoted(name)} maps {found[0]} to {found[1]} features, the layer maps {layer[0]} to "
                f"{layer[1]}",
                remedy="the adapter was made for another model",
            )

    def add(self, name: str, adapter: LowRank, strength: float) -> None:
        """Append an adapter that fits."""
        self.down = torch.cat([self.down, adapter.down.to(self.down)])
        self.up = torch.cat([self.up, adapter.up.to(self.up)], 1)
        if adapter.bias is not None:
            self.biases = torch.cat([self.biases, adapter.bias.to(self.biases)[None]])
        self._shares[name] = _Share(adapter.rank, adapter.scale, strength, adapter.bias is not None)
        self._write_factors()

    def remove(self, name: str) -> None:
        """Take an adapter out."""
        before = [self._shares[other] for other in takewhile(lambda other: other != name, self._shares)]
        share = self._shares.pop(name)
        start, row = sum(one.rank for one in before), sum(one.has_bias for one in before)
        end = start + share.rank
        self.biases = torch.cat([self.biases[:row], self.biases[row + share.has_bias :]])
        self.down = torch.cat([self.down[:start], self.down[end:]])
        self.up = torch.cat([self.up[:, :start], self.up[:, end:]], 1)
        self._write_factors()

    def set_strength(self, name: str, strength: float) -> None:
        """Change how much of an adapter is added."""
        self._shares[name] = replace(self._shares[name], strength=strength)
        self._write_factors()

    def added_to(self, output: Tensor, x: Tensor) -> Tensor:
        """`output` (..., out_features) plus the term of `x` (..., in_features), in the dtype of `output`."""
        if not self._is_active:
            return output
        if self.down.device != x.device:
            # Where a weight is streamed from, the layer's own device is not the one that it computes on.
            self.to(x.device)
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        down, up, factors = self.down, self.up, self.factors
        inner = nn.functional.linear(x.to(down.dtype), down)
        # Factors stay in float32: a strength of 0.3 is not one in bfloat16.
        if inner.requires_grad:
            inner = (inner * factors).to(up.dtype)
        else:
            torch.mul(inner, factors, out=inner)
        if output.dtype != up.dtype or output.ndim < 2:
            return output + nn.functional.linear(inner, up).to(output.dtype)
        # One launch and one rounding for product and sum.
        return torch.addmm(output.flatten(0, -2), inner.flatten(0, -2), up.t()).view(output.shape)

    def _write_factors(self) -> None:
        shares = self._shares.values()
        self._is_active = any(share.strength for share in shares)
        factors = torch.tensor([share.scale * share.strength for share in shares], dtype=torch.float32)
        ranks = torch.tensor([share.rank for share in shares], dtype=torch.int64)
        self.factors = factors.repeat_interleave(ranks).to(self.down.device)
        strengths = [share.strength for share in shares if share.has_bias]
        self.bias = torch.tensor(strengths, device=self.biases.device) @ self.biases if any(strengths) else None
