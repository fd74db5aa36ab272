"""A model larger than its share of a GPU, streamed from the host: Torchspan against what others do, in one process.

Usage: python tools/bench/cuda_streaming.py [--blocks 24] [--width 3072] [--tokens 2048] [--resident 0.25] [--passes 6]

Every way runs the same stack of bfloat16 transformer blocks on the same input; its output must equal that of the
resident model. Columns:

s a pass     median of the passes after two to warm up; the host waits for each result, as a sampler does
to ours      that time over the one of the second row, ours
overlap      max(C, D) / P: C is a pass of the resident model, D the time its streamed bytes take on the link as probed,
             P the pass; 1.00 means that everything that can overlap does. Ways that stream everything have a larger D.
syncs        host synchronisations a pass, counted from the CUDA runtime calls in a profile of one pass
peak GiB     most memory allocated on the GPU during the passes
predicted    what `predict` said before, and how far off it was

`--resident` is the share of the model that our plans and the serial copy may keep on the GPU. `--device cpu` checks the
script where there is no GPU: the ways that need no stream run, and the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from block_discovery import discover
from device_placement import Hardware, PlacementPlan, Policy, place, plan, predict, probe

GIB = 1 << 30
WARM_PASSES = 2
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Block(nn.Module):
    """A transformer block: attention and a feed-forward part, 12 width^2 weights."""

    def __init__(self, width: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        query, key, value = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        result: Tensor = x + self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return result


class Stack(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        for block in self.blocks:
            x = block(x)
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all ways share."""

    blocks: int
    width: int
    resident: float
    passes: int
    device: torch.device
    x: Tensor
    weights: Mapping[str, Tensor]

    def model(self) -> Stack:
        """A fresh model on the host over the one set of weights, which nobody writes to."""
        with torch.device("meta"):
            model = Stack(self.blocks, self.width)
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of the table."""

    name: str
    seconds: float
    syncs: int | None
    peak_bytes: int
    streamed_bytes: int
    is_equal: bool
    predicted_seconds: float | None = None


def random_weights(blocks: int, width: int, device: torch.device) -> dict[str, Tensor]:
    """Weights of a stack on the host, drawn on `device`: a GPU draws gigabytes in no time."""
    torch.manual_seed(0)
    with device:
        drawn = [Block(width).to(torch.bfloat16) for _ in range(blocks)]
    return {
        f"blocks.{index}.{name}": tensor.to("cpu")
        for index, block in enumerate(drawn)
        for name, tensor in block.state_dict().items()
    }


Applied = Callable[[Stack], AbstractContextManager[object]]
"""What is done to a fresh model on the host before it runs, and undone after."""

Entries = dict[nn.Module, dict[str, nn.Parameter | None]]
"""The parameters of each part of a block."""


@contextmanager
def serial_copies(model: Stack, device: torch.device, resident: float) -> Iterator[None]:
    """The last blocks stay; each of the others is copied before its forward and dropped after it."""
    streamed = round(len(model.blocks) * (1 - resident))
    model.blocks[streamed:].to(device)
    handles = []
    for block in model.blocks[:streamed]:
        homes: Entries = {module: dict(module._parameters) for module in block.modules()}

        def fetch(module: nn.Module, args: object, homes: Entries = homes) -> None:
            for part, tensors in homes.items():
                for name, tensor in tensors.items():
                    if tensor is not None:
                        part._parameters[name] = nn.Parameter(tensor.to(device), requires_grad=False)

        def drop(module: nn.Module, args: object, result: object, homes: Entries = homes) -> None:
            for part, tensors in homes.items():
                part._parameters.update(tensors)

        handles += [block.register_forward_pre_hook(fetch), block.register_forward_hook(drop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def accelerate_offload(model: Stack, device: torch.device) -> AbstractContextManager[object]:
    """Accelerate's cpu_offload: every leaf fetched before its forward."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=device)
    return nullcontext()


def diffusers_offload(model: Stack, device: torch.device, *, by_block: bool) -> AbstractContextManager[object]:
    """Diffusers' group offloading with a stream: everything streams, one group ahead."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level" if by_block else "leaf_level",
        num_blocks_per_group=1 if by_block else None,
        use_stream=True,
    )
    return nullcontext()


def wait_for_result(device: torch.device) -> None:
    """Wait for the stream that computes, not for copies that run ahead."""
    if device.type != "cpu":
        torch.accelerator.current_stream(device).synchronize()


def host_syncs(model: Stack, setting: Setting) -> int | None:
    """Synchronising calls of the CUDA runtime during one pass; None without a GPU."""
    if setting.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        model(setting.x)
    # The profiler synchronises once itself when it stops.
    counts = [int(event.count) for event in recorded.key_averages() if event.key in SYNCS]
    return max(0, sum(counts) - 1)


def measure(name: str, applied: Applied, setting: Setting, expected: Tensor | None, streamed_bytes: int) -> Result:
    """Run one way."""
    model = setting.model()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with applied(model), torch.no_grad():
        seconds = []
        for _ in range(WARM_PASSES + setting.passes):
            wait_for_result(setting.device)
            began = time.perf_counter()
            output = model(setting.x)
            wait_for_result(setting.device)
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() if setting.device.type == "cuda" else 0
        return Result(
            name=name,
            seconds=statistics.median(seconds[WARM_PASSES:]),
            syncs=host_syncs(model, setting),
            peak_bytes=peak,
            streamed_bytes=streamed_bytes,
            is_equal=expected is None or torch.equal(output.cpu(), expected),
        )


def planned(setting: Setting, hardware: Hardware, policy: Policy) -> PlacementPlan:
    """Our plan: so much resident, the rest on the host."""
    return plan(discover(setting.model()), f"{hardware.compute},{setting.resident:.0%};cpu,*", hardware, policy=policy)


def rows(setting: Setting, hardware: Hardware) -> Iterator[Result]:
    """All rows; the resident model first."""
    device, size = setting.device, sum(tensor.numel() * 2 for tensor in setting.model().parameters())
    with torch.no_grad():
        expected = setting.model().to(device)(setting.x).cpu()
    resident = measure("resident", lambda model: nullcontext(model.to(device)), setting, expected, 0)
    yield resident
    if device.type != "cpu":
        policies: tuple[Policy, ...] = ("stripe", "interleave", "contiguous")
        for policy in policies:
            placement = planned(setting, hardware, policy)
            estimate = predict(placement, hardware, compute_seconds=resident.seconds)
            found = measure(
                f"ours, {policy}",
                lambda model, placement=placement: place(model.to("cpu"), placement),  # type: ignore[misc]
                setting,
                expected,
                placement.streamed_bytes,
            )
            yield replace(found, predicted_seconds=estimate.seconds)
    serial_bytes = size * round(setting.blocks * (1 - setting.resident)) // setting.blocks
    yield measure(
        "serial copies", lambda m: serial_copies(m, device, setting.resident), setting, expected, serial_bytes
    )
    yield measure("accelerate cpu_offload", lambda m: accelerate_offload(m, device), setting, expected, size)
    if device.type != "cpu":
        for by_block in (True, False):
            name = f"diffusers group, {'block' if by_block else 'leaf'}"
            yield measure(
                name,
                lambda m, by_block=by_block: diffusers_offload(m, device, by_block=by_block),  # type: ignore[misc]
                setting,
                expected,
                size,
            )


def show(results: Iterable[Result], bytes_per_second: float) -> bool:
    """Print each row as it comes, the first two together; whether all outputs were equal."""
    print("| way | s a pass | to ours | overlap | syncs | peak GiB | streamed GiB | predicted | equal |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    coming = iter(results)
    first = list(islice(coming, 2))
    compute, reference = (result.seconds for result in first)
    all_equal = True
    for result in chain(first, coming):
        overlap = max(compute, result.streamed_bytes / bytes_per_second) / result.seconds
        guess = result.predicted_seconds
        predicted = "" if guess is None else f"{guess:.4f} ({100 * (guess / result.seconds - 1):+.1f} %)"
        print(
            f"| {result.name} | {result.seconds:.4f} | {result.seconds / reference:.2f} | {overlap:.2f} "
            f"| {'' if result.syncs is None else result.syncs} | {result.peak_bytes / GIB:.2f} "
            f"| {result.streamed_bytes / GIB:.2f} | {predicted} | {'yes' if result.is_equal else 'NO'} |",
            flush=True,
        )
        all_equal = all_equal and result.is_equal
    return all_equal


def main() -> int:
    """Print the table; 1 when there is no GPU, or an output differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="device that computes (cuda:0)")
    parser.add_argument("--blocks", type=int, default=24, help="blocks of the model (24)")
    parser.add_argument("--width", type=int, default=3072, help="features, a multiple of 64 (3072: 216 MiB a block)")
    parser.add_argument("--tokens", type=int, default=2048, help="length of the input (2048)")
    parser.add_argument("--resident", type=float, default=0.25, help="share of the model kept on the device (0.25)")
    parser.add_argument("--passes", type=int, default=6, help="passes measured (6)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("this benchmark needs a CUDA GPU and torch sees none; `torchspan devices` says why", file=sys.stderr)
        return 1
    setting = Setting(
        blocks=options.blocks,
        width=options.width,
        resident=options.resident,
        passes=options.passes,
        device=device,
        x=torch.randn(1, options.tokens, options.width, device=device).to(torch.bfloat16),
        weights=random_weights(options.blocks, options.width, device),
    )
    hardware = probe(str(device), [] if device.type == "cpu" else ["cpu"])
    link = None if device.type == "cpu" else hardware.link("cpu", hardware.compute)
    rate = float("inf") if link is None else link.gb_per_second * 1e9
    print(f"{hardware.device(hardware.compute).label or device}; torch {torch.__version__}; {datetime.date.today()}")
    print(
        f"{options.blocks} blocks of width {options.width}, {options.tokens} tokens; host link {rate / 1e9:.1f} GB/s\n"
    )
    return 0 if show(rows(setting, hardware), rate) else 1


if __name__ == "__main__":
    sys.exit(main())
