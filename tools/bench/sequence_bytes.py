"""Bytes that sequence parallelism sends, against the formulas and the cost model: they must be the same, to the byte.

Run `python tools/bench/sequence_bytes.py [--ranks 2 3 4] [--layers 3]`. A stack of attention blocks runs on threads as
ranks, once with sizes that divide by the ranks and once with sizes that do not, in every kind of attention. `sent` is
what all ranks together handed to the collectives in one forward, the join at the end included; `formula` is the one for
sizes that divide, `cost model` counts uneven shards too. Exit code 1 when the cost model is off by one byte.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import date

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_parallel.sequence import (
    Attn,
    Kind,
    Plan,
    Region,
    Seq,
    ThreadComm,
    Workload,
    forward_bytes,
    joining_bytes,
    parallelize,
    run_threads,
)

PLAN = Plan(regions=[Region(blocks="blocks", args={"x": Seq("v")}, out=Seq("v"), attn={"": Attn("v", "v")})])
HEAD_DIM = 8
ELEMENT_BYTES = 4


class Block(nn.Module):
    """Self-attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """[1, S, heads * HEAD_DIM] to the same."""
        q = x.view(*x.shape[:2], self.heads, HEAD_DIM).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)


class Stack(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(work.heads) for _ in range(work.layers))

    def forward(self, x: Tensor) -> Tensor:
        """[1, S, D] to the same."""
        for block in self.blocks:
            x = block(x)
        return x


def ways(ranks: int) -> Iterator[tuple[Kind, int | None]]:
    """Every kind, USP with every way to group the ranks."""
    yield from (("ulysses", None), ("ring", None), ("all_gather", None))
    for neighbours in range(2, ranks):
        if ranks % neighbours == 0:
            yield "usp", neighbours


def sent_bytes(work: Workload, kind: Kind, ranks: int, ulysses: int | None) -> int:
    """What all ranks send in one forward."""
    x = torch.randn(1, work.tokens, work.width)

    def rank(comm: ThreadComm) -> int:
        with torch.no_grad(), parallelize(Stack(work), PLAN, comm, kind=kind, ulysses=ulysses) as parallel:
            parallel.model(x)
            mesh = parallel.mesh
        ends = {id(end): end for end in (mesh.world, mesh.rows, mesh.ring) if end is not None}
        return sum(end.traffic.total_bytes for end in ends.values())

    return sum(run_threads(ranks, rank))


def by_formula(work: Workload, kind: Kind, ranks: int, ulysses: int | None) -> float:
    """The formulas for sizes that divide by the ranks, all ranks together, with the join at the end."""
    n, d, p = work.tokens, work.width, ranks
    u = ulysses or (p if kind == "ulysses" else 1)
    layer = 4 * n * d * (u - 1) / (p * u) + 2 * n * d * (p // u - 1) / p
    return (layer * work.layers + n * d * (p - 1) / p) * p * ELEMENT_BYTES


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when a byte is missing or too many."""
    parser = argparse.ArgumentParser(description="Compare the bytes that ranks send with the formulas.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4], help="rank counts (default: 2 3 4)")
    parser.add_argument("--layers", type=int, default=3, help="blocks of the model (default: 3)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}; fp32, {given.layers} layers, all ranks\n")
    print("| kind | ranks | tokens | heads | sent | cost model | formula | sent / formula |")
    print("|---|---|---|---|---|---|---|---|")
    wrong = 0
    for ranks in given.ranks:
        for tokens, heads in ((240, 12), (241, 11)):
            work = Workload(
                tokens=tokens,
                heads=heads,
                head_dim=HEAD_DIM,
                layers=given.layers,
                forward_seconds=1.0,
                element_bytes=ELEMENT_BYTES,
            )
            for kind, ulysses in ways(ranks):
                sent = sent_bytes(work, kind, ranks, ulysses)
                model = sum(
                    forward_bytes(work, kind, ranks, ulysses=ulysses, rank=rank) + joining_bytes(work, ranks, rank=rank)
                    for rank in range(ranks)
                )
                wrong += sent != model
                name = kind if ulysses is None else f"{kind} {ulysses} x {ranks // ulysses}"
                formula = by_formula(work, kind, ranks, ulysses)
                print(
                    f"| {name} | {ranks} | {tokens} | {heads} | {sent:,} | {model:,} | {formula:,.0f} "
                    f"| {sent / formula:.4f} |"
                )
    print(f"\n{wrong} rows in which the cost model is not what was sent")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
