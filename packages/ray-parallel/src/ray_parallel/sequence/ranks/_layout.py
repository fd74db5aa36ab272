"""Who holds which tokens: contiguous shards of named streams, uneven where they must be, whole where they are short.

A stream is a run of tokens that belong together (the text of a prompt, the patches of a video). Every rank computes
the same tables from the lengths alone, so no sizes are ever exchanged and nothing is padded.

Two tables describe a stream: `held` is what a rank has in memory, `owned` is what it contributes to an exchange. The
owned parts are a partition of the stream. They differ only for a stream that every rank holds whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import torch
from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError

Span = tuple[int, int]
"""Half-open range of token positions, [start, end)."""


Shares = tuple[float, ...]
"""How much of the work each rank does: positive numbers, one a rank, in any unit (70, 30)."""


def checked_shares(shares: Sequence[float] | None, ranks: int) -> Shares | None:
    """The shares in the form that is compared and used; None for equal ones.

    Raises:
        PlanError: there is not one share a rank, or one is no positive number.
    """
    if shares is None:
        return None
    numbers = [float(s) for s in shares if isinstance(s, int | float) and not isinstance(s, bool)]
    if len(numbers) != len(shares) or not all(0 < number < math.inf for number in numbers):
        raise PlanError(f"shares {list(shares)} are not positive numbers; give each rank its part, such as 70, 30")
    if len(numbers) != ranks:
        raise PlanError(f"{len(numbers)} shares for {ranks} ranks; give one share a rank")
    total = sum(numbers)
    return None if len(set(numbers)) == 1 else tuple(number / total for number in numbers)


def cuts(total: int, ranks: int, unit: int = 1, shares: Shares | None = None) -> tuple[Span, ...]:
    """Cut `total` tokens into one contiguous span a rank, in equal parts or by shares.

    Equal parts differ by at most one `unit`. Shares are rounded by the largest remainders, and every rank gets at least
    one unit.

    Args:
        total: number of tokens.
        ranks: number of spans; with fewer units than ranks the last ones are empty, whatever the shares.
        unit: tokens that stay together (those of one frame); divides `total`.
        shares: part of each rank, as `checked_shares` gives them; None: equal parts.

    Raises:
        PlanError: `unit` does not divide `total`.

    Examples:
        >>> cuts(7, 3)
        ((0, 3), (3, 5), (5, 7))
        >>> cuts(8, 3, unit=2)
        ((0, 4), (4, 6), (6, 8))
        >>> cuts(10, 2, shares=(0.72, 0.28))
        ((0, 7), (7, 10))
    """
    units, rest = divmod(total, unit)
    if rest:
        raise PlanError(f"{total} tokens cannot be cut in units of {unit}: {rest} are left over")
    counts = _counts(units, shares if shares is not None and units >= ranks else (1 / ranks,) * ranks)
    ends = [*accumulate(count * unit for count in counts)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def _counts(units: int, shares: Shares) -> list[int]:
    """Whole units by the largest remainders; at least one each where there are enough."""
    exact = [Fraction(share) for share in shares]
    wanted = [units * share / sum(exact) for share in exact]
    least = 1 if units >= len(shares) else 0
    counts = [max(least, math.floor(want)) for want in wanted]
    while (left := units - sum(counts)) != 0:
        # The one that is furthest from what it wants; of equals the first one gets and the last one gives.
        places = range(len(counts)) if left > 0 else [i for i in reversed(range(len(counts))) if counts[i] > least]
        place = max(places, key=lambda i: (wanted[i] - counts[i]) * (1 if left > 0 else -1))
        counts[place] += 1 if left > 0 else -1
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The shards of all streams, seen from one rank.

    Build one with `Layout.of`. Methods take `streams`, the names whose concatenation a tensor's dimension holds.

    Attributes:
        lengths: tokens of each stream.
        ranks: number of ranks.
        rank: the one whose view this is.
        held: for each stream the span that each rank has in memory.
        owned: for each stream the span that each rank contributes; a partition of the stream.

    Examples:
        >>> layout = Layout.of({"txt": 1, "img": 5}, ranks=2, rank=1)
        >>> layout.held  # one text token cannot be cut in two: every rank holds it
        {'txt': ((0, 1), (0, 1)), 'img': ((0, 3), (3, 5))}
        >>> layout.take(torch.arange(6), ("txt", "img"), 0)
        tensor([0, 4, 5])
    """

    lengths: Mapping[str, int]
    ranks: int
    rank: int
    held: Mapping[str, tuple[Span, ...]]
    owned: Mapping[str, tuple[Span, ...]]

    @classmethod
    def of(
        cls,
        lengths: Mapping[str, int],
        *,
        ranks: int,
        rank: int,
        units: Mapping[str, int] | None = None,
        whole: Collection[str] = (),
        shares: Shares | None = None,
    ) -> Layout:
        """Cut every stream, except those that are kept whole or are too short to give each rank a unit.

        A rank without a token would run the model on empty tensors, which model code does not survive; hence such a
        stream is held whole by all.

        Args:
            lengths: tokens of each stream.
            ranks: number of ranks.
            rank: the one whose view this is.
            units: tokens that stay together, for the streams where they do.
            whole: streams that every rank holds, whatever their length.
            shares: part of each rank; None: equal parts.

        Raises:
            PlanError: a length is not divisible by its unit.
        """
        units = units or {}
        owned = {name: cuts(length, ranks, units.get(name, 1), shares) for name, length in lengths.items()}
        held = {
            name: ((0, length),) * ranks if name in whole or length // units.get(name, 1) < ranks else owned[name]
            for name, length in lengths.items()
        }
        return cls(lengths=dict(lengths), ranks=ranks, rank=rank, held=held, owned=owned)

    def is_whole(self, stream: str) -> bool:
        """Whether every rank holds all of `stream`."""
        return self.ranks == 1 or not self.lengths[stream] or self.held[stream] != self.owned[stream]

    def cut_streams(self, streams: Sequence[str]) -> tuple[str, ...]:
        """Those of `streams` that are cut."""
        return tuple(name for name in streams if not self.is_whole(name))

    def full(self, streams: Sequence[str]) -> int:
        """Tokens of `streams` over all ranks."""
        return sum(self.lengths[name] for name in streams)

    def size(self, streams: Sequence[str]) -> int:
        """Tokens of `streams` that this rank holds."""
        return _tokens(self.held, streams, self.rank)

    def held_sizes(self, streams: Sequence[str]) -> list[int]:
        """Tokens of `streams` that each rank holds."""
        return [_tokens(self.held, streams, rank) for rank in range(self.ranks)]

    def owned_sizes(self, streams: Sequence[str]) -> list[int]:
        """Tokens of `streams` that each rank contributes."""
        return [_tokens(self.owned, streams, rank) for rank in range(self.ranks)]

    def take(self, whole: Tensor, streams: Sequence[str], dim: int) -> Tensor:
        """What this rank holds of `whole`: a new tensor, because blocks write into theirs."""
        full = {name: (0, self.lengths[name]) for name in streams}
        out = _pick(whole, streams, dim, full, {name: self.held[name][self.rank] for name in streams})
        return out.clone(memory_format=torch.contiguous_format) if len(streams) == 1 else out

    def contribution(self, held: Tensor, streams: Sequence[str], dim: int) -> Tensor:
        """What this rank sends of what it holds; possibly a view."""
        base = {name: self.held[name][self.rank] for name in streams}
        return _pick(held, streams, dim, base, {name: self.owned[name][self.rank] for name in streams})

    def join(self, parts: Sequence[Tensor], streams: Sequence[str], dim: int) -> Tensor:
        """The whole tensor, streams in their order, from every rank's contribution."""
        if len(streams) == 1:
            return torch.cat(list(parts), dim)
        pieces = [
            torch.split(part, [_length(self.owned[name][rank]) for name in streams], dim)
            for rank, part in enumerate(parts)
        ]
        return torch.cat([pieces[rank][i] for i in range(len(streams)) for rank in range(self.ranks)], dim)

    def apart(self, whole: Tensor, streams: Sequence[str], dim: int) -> list[Tensor]:
        """What each rank holds of a tensor that has everything these ranks own; possibly views."""
        base = {name: self._owned_by_all(name) for name in streams}
        return [
            _pick(whole, streams, dim, base, {name: self.held[name][rank] for name in streams})
            for rank in range(self.ranks)
        ]

    def among(self, ranks: Sequence[int], rank: int) -> Layout:
        """The shards of a few neighbouring ranks, as a layout of their own; `rank` counts within `ranks`."""
        held = {name: tuple(spans[member] for member in ranks) for name, spans in self.held.items()}
        owned = {name: tuple(spans[member] for member in ranks) for name, spans in self.owned.items()}
        return Layout(lengths=self.lengths, ranks=len(ranks), rank=rank, held=held, owned=owned)

    def positions(self, streams: Sequence[str], *, owned: bool = False) -> Tensor:
        """Places, in the concatenation of `streams`, of tokens that this rank holds; int64, on the CPU.

        Args:
            streams: the concatenation.
            owned: the tokens that all ranks of this layout together own, instead of those that this one holds.
        """
        places, offset = [torch.empty(0, dtype=torch.int64)], 0
        for name in streams:
            start, end = self._owned_by_all(name) if owned else self.held[name][self.rank]
            places.append(torch.arange(offset + start, offset + end))
            offset += self.lengths[name]
        return torch.cat(places)

    def _owned_by_all(self, stream: str) -> Span:
        return self.owned[stream][0][0], self.owned[stream][-1][1]

    def ranges(self, start: int, end: int, streams: Sequence[str]) -> list[Span]:
        """The local ranges of the places [start, end) of the concatenation of `streams`, in their order."""
        found, offset, local = [], 0, 0
        for name in streams:
            first, last = self.held[name][self.rank]
            low, high = max(start, offset + first), min(end, offset + last)
            if low < high:
                shift = local - offset - first
                found.append((low + shift, high + shift))
            offset += self.lengths[name]
            local += last - first
        return found


def _length(span: Span) -> int:
    return span[1] - span[0]


def _tokens(table: Mapping[str, tuple[Span, ...]], streams: Sequence[str], rank: int) -> int:
    return sum(_length(table[name][rank]) for name in streams)


def _pick(
    tensor: Tensor, streams: Sequence[str], dim: int, base: Mapping[str, Span], wanted: Mapping[str, Span]
) -> Tensor:
    """The spans `wanted` out of a tensor that holds the spans `base`, stream after stream."""
    parts, offset = [], 0
    for name in streams:
        start, end = wanted[name]
        parts.append(tensor.narrow(dim, offset + start - base[name][0], end - start))
        offset += _length(base[name])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
