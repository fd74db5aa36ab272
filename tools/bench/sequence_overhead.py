"""What a plan costs one rank: hooks and checks around a model, with nothing to send. One process, one table.

Run `python tools/bench/sequence_overhead.py [--blocks 40] [--repeats 30]`. Variants take turns, each keeps the least
CPU time of its repeats; `us a block` is the difference to the plain forward of the same turns. The small model is
nearly all overhead; the other is a block of ordinary size, to show what is left of it.

plan                 everything that is on by default
without preflight    the comparison of the ranks before each forward left out
empty hooks          a pre-hook and a hook that do nothing, on every block and its attention
caught attention     the function mode that sees attention, and nothing else
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_parallel.sequence import Attn, Comm, Plan, Region, Seq, ThreadComm, parallelize, run_threads
from ray_parallel.sequence.running._catch import SdpaMode

PLAN = Plan(
    regions=[
        Region(
            blocks="blocks",
            args={"x": Seq("v"), "pe": Seq("v")},
            whole="e",
            out=Seq("v"),
            attn={"attn": Attn("v", "v")},
        )
    ]
)
PASSES_A_TURN = 3


class Attention(nn.Module):
    """Self-attention with positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, pe: Tensor) -> Tensor:
        """[1, S, D] and [1, S, D] to [1, S, D]."""
        q, k, v = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in self.qkv(x + pe).chunk(3, -1))
        projected: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Attention and a feed-forward of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, pe: Tensor, e: Tensor) -> Tensor:
        """[1, S, D], [1, S, D] and [1, 1, D] to [1, S, D]."""
        x = x + e * self.attn(x, pe)
        moved: Tensor = x + self.down(F.gelu(self.up(x)))
        return moved


class Stack(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, blocks: int, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, x: Tensor, pe: Tensor, e: Tensor) -> Tensor:
        """[1, S, D], [1, S, D] and [1, 1, D] to [1, S, D]."""
        for block in self.blocks:
            x = block(x, pe, e=e)
        return x


@contextmanager
def empty_hooks(model: Stack) -> Iterator[None]:
    """As many hooks as a plan sets on blocks and attention, which do nothing."""
    modules = [module for module in model.modules() if isinstance(module, Block | Attention)]
    handles = [
        handle
        for module in modules
        for handle in (
            module.register_forward_pre_hook(lambda *_: None, with_kwargs=True),
            module.register_forward_hook(lambda *_: None),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def variants(comm: Comm) -> dict[str, Callable[[Stack], AbstractContextManager[object]]]:
    """What is put on the model before it runs."""
    return {
        "plain forward": lambda model: nullcontext(),
        "plan": partial(parallelize, plan=PLAN, comm=comm),
        "without preflight": partial(parallelize, plan=PLAN, comm=comm, preflight=False),
        "empty hooks": empty_hooks,
        "caught attention": lambda model: SdpaMode(lambda caught: None),
    }


def measure(comm: Comm, model: Stack, inputs: Sequence[Tensor], repeats: int) -> dict[str, float]:
    """Least CPU seconds of one forward, for each variant."""
    least = dict.fromkeys(variants(comm), float("inf"))
    with torch.no_grad():
        want = model(*inputs)
        for _ in range(repeats):
            for name, applied in variants(comm).items():
                with applied(model):
                    start = time.thread_time()
                    for _ in range(PASSES_A_TURN):
                        out = model(*inputs)
                    least[name] = min(least[name], (time.thread_time() - start) / PASSES_A_TURN)
                assert torch.equal(out, want)
    return least


def show(comm: ThreadComm, blocks: int, width: int, tokens: int, repeats: int) -> None:
    """One table."""
    torch.manual_seed(0)
    model = Stack(blocks, width, 4).eval()
    inputs = (torch.randn(1, tokens, width), torch.randn(1, tokens, width), torch.randn(1, 1, width))
    found = measure(comm, model, inputs, repeats)
    plain = found["plain forward"]
    print(f"\n{blocks} blocks of width {width}, {tokens} tokens:\n")
    print("| variant | us a block | of that, added | ratio to plain |\n|---|---|---|---|")
    for name, seconds in found.items():
        added = (seconds - plain) / blocks * 1e6
        print(f"| {name} | {seconds / blocks * 1e6:.1f} | {added:.1f} | {seconds / plain:.3f} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Measure what a plan costs where there is nothing to send.")
    parser.add_argument("--blocks", type=int, default=40, help="blocks of the small model (default: 40)")
    parser.add_argument("--repeats", type=int, default=30, help="turns of every variant (default: 30)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}; one rank, one thread, CPU time")
    run_threads(1, partial(show, blocks=given.blocks, width=16, tokens=16, repeats=given.repeats))
    run_threads(1, partial(show, blocks=4, width=512, tokens=512, repeats=max(1, given.repeats // 3)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
