"""What streaming costs the host: CPU time a block, against a plain forward and what others do. One process, one table.

Usage: python tools/bench/hook_overhead.py [--blocks 200] [--repeats 30]

The model is a stack of blocks of six small tensors, so that nearly all time is overhead; everything stays on the CPU,
so that no copy engine hides it. The variants take turns, each keeps the least CPU time of its repeats, and what it
costs a block is the difference to the plain forward of the same turns.

ours, shared memory    hooks and the exchange of tensors alone (SameDeviceBackend)
ours, emulated link    the same, and what the emulation of a link costs the caller, who hands each copy to its thread
ours, all resident     no block streams, so no block has a hook
empty hooks            a pre-hook and a hook that do nothing, on every block
accelerate             cpu_offload from the CPU to the CPU
diffusers, block       apply_group_offloading, block_level, one block a group
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from device_placement import (
    Backend,
    EmulatedBackend,
    Link,
    PlacementPlan,
    SameDeviceBackend,
    TensorHome,
    UnitPlacement,
    place,
)

WIDTH = 16
"""Features of the model: small, so that a forward costs little but its calls."""

PASSES_A_TURN = 3

DONOR = "donor:0"
COMPUTE = "cpu"


class Block(nn.Module):
    """Three linear layers: six tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH)
        self.c = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[1, WIDTH] to [1, WIDTH]."""
        result: Tensor = self.c(self.b(self.a(x)))
        return result


class Stack(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """[1, WIDTH] to [1, WIDTH]."""
        for block in self.blocks:
            x = block(x)
        return x


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the model: what is done to it before and undone after."""

    name: str
    applied: Callable[[Stack], AbstractContextManager[object]]


def plan_of(model: Stack, home: str) -> PlacementPlan:
    """Every tensor of the model on one device."""
    units = tuple(
        UnitPlacement(
            path=f"blocks.{index}",
            class_name="Block",
            kind="block",
            homes=tuple(
                TensorHome(name=f"blocks.{index}.{name}", size_bytes=tensor.numel() * 4, device=home)
                for name, tensor in block.named_parameters()
            ),
        )
        for index, block in enumerate(model.blocks)
    )
    return PlacementPlan(compute=COMPUTE, donors=(DONOR,), policy="stripe", slots=2, units=units)


def placed(home: str, backend: Backend) -> Callable[[Stack], AbstractContextManager[object]]:
    """Our engine."""
    return lambda model: place(model, plan_of(model, home), backend=backend)


@contextmanager
def empty_hooks(model: Stack) -> Iterator[None]:
    """What any hook costs."""
    with ExitStack() as handles:
        for block in model.blocks:
            handles.callback(block.register_forward_pre_hook(lambda module, args: None).remove)
            handles.callback(block.register_forward_hook(lambda module, args, result: None, always_call=True).remove)
        yield


def accelerate_offload(model: Stack) -> AbstractContextManager[object]:
    """The hooks of accelerate, which fetch the parameters of each leaf and drop them; they stay on."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"))
    return nullcontext()


def diffusers_offload(model: Stack) -> AbstractContextManager[object]:
    """The group offloading of diffusers; its hooks have no public way off."""
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    apply_group_offloading(
        model, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    return nullcontext()


def variants() -> list[Variant]:
    """All rows of the table; the plain forward first."""
    fast = Link(source=DONOR, target=COMPUTE, gb_per_second=1000.0, latency_seconds=0.0)
    return [
        Variant("plain forward", lambda model: nullcontext()),
        Variant("ours, all resident", placed(COMPUTE, SameDeviceBackend())),
        Variant("ours, shared memory", placed(DONOR, SameDeviceBackend())),
        Variant("ours, emulated link", placed(DONOR, EmulatedBackend([fast]))),
        Variant("empty hooks", empty_hooks),
        Variant("accelerate cpu_offload", accelerate_offload),
        Variant("diffusers group, block", diffusers_offload),
    ]


def least_microseconds(chosen: list[Variant], blocks: int, repeats: int) -> dict[str, float]:
    """Least CPU time of the calling thread for one block, by variant; the variants take turns."""
    x = torch.randn(1, WIDTH)
    least = dict.fromkeys((variant.name for variant in chosen), float("inf"))
    with ExitStack() as stack, torch.no_grad():
        models = []
        for variant in chosen:
            model = Stack(blocks).eval()
            stack.enter_context(variant.applied(model))
            model(x)
            models.append((variant.name, model))
        for _ in range(repeats):
            for name, model in models:
                # The first pass of a turn meets the caches as the variant before left them.
                model(x)
                for _ in range(PASSES_A_TURN):
                    began = time.thread_time()
                    model(x)
                    least[name] = min(least[name], (time.thread_time() - began) / blocks * 1e6)
    return least


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=200, help="blocks of the model (200)")
    parser.add_argument("--repeats", type=int, default=30, help="turns of each variant (30)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    least = least_microseconds(variants(), options.blocks, options.repeats)
    plain = least["plain forward"]
    ours = least["ours, shared memory"] - plain
    print(f"{options.blocks} blocks of 6 tensors, width {WIDTH}, 1 thread")
    print(f"torch {torch.__version__}, {platform.machine()}, {datetime.date.today()}\n")
    print("| variant | us a block | of that, added | ratio to plain | added, ratio to ours |")
    print("|---|---|---|---|---|")
    for name, microseconds in least.items():
        added = microseconds - plain
        print(f"| {name} | {microseconds:.1f} | {added:.1f} | {microseconds / plain:.2f} | {added / ours:.2f} |")


if __name__ == "__main__":
    main()
