"""Packed weights on a GPU: exactness, bytes moved against the ideal, layers, LoRA, against ComfyUI-GGUF.

Usage: python tools/bench/gguf_cuda.py [--device cuda] [--size 4096] [--repeats 30] [--types Q4_K,Q8_0]
       [--comfyui-gguf PATH-OF-A-CHECKOUT]

Four tables, and the name of the GPU that they are from:
1. Every type: whether the GPU's float32 equals the CPU's bit for bit and its bfloat16 that value rounded once, by
   Triton and by eager torch alike; the time of Triton's kernel alone (a graph of calls on several tensors, more than
   the cache holds); its rate as a share of what a device copy reaches, counting the bytes that have to move (blocks
   read once, weights written once), 1.0 being the ideal; and the time of one call from an idle start, the host's work
   included, by Triton, eager torch, the peer.
2. A linear layer, Q4_K, by tokens: packed against dense bfloat16 and against dequantising the whole weight first.
3. LoRA of rank 32 beside that layer.
4. Time from the host: packed blocks copied and dequantised on the GPU, against a copy of the dense weight.
`--device cpu` runs the same script without a GPU, to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product as pairs
from pathlib import Path
from typing import Any

import torch
from gguf_dequant import PEER_TYPES, load_peer
from gguf_lora import adapters, layer_with
from gguf_packing import BLOCK_TYPES, same_bits, tame_blocks
from torch import Tensor, nn

from gguf_loader import Backend, DequantConfig, GgmlType, PackedTensor, ScratchPool, configure, dequantize, type_by_name

BACKENDS: tuple[Backend, ...] = ("auto", "eager")
"""What dequantises on a GPU: Triton, where it is installed, and eager torch."""

FLUSH_BYTES = 256 << 20
"""More than any GPU's second-level cache: written between repeats, so that blocks come from memory."""


class Timer:
    """Milliseconds of work on one device, by its own events where it has them."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._flush = torch.empty(FLUSH_BYTES if device.type == "cuda" else 1, dtype=torch.uint8, device=device)

    def least(self, timed: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Least milliseconds of each variant, the variants taking turns after two rounds to warm up."""
        least = dict.fromkeys(timed, float("inf"))
        for turn in range(self.repeats + 2):
            for label, call in timed.items():
                self._flush.zero_()
                milliseconds = self._once(call)
                if turn >= 2:
                    least[label] = min(least[label], milliseconds)
        return least

    def each(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Least milliseconds a call of the device alone: all calls as one graph, which the host starts once."""
        for call in calls:
            call()
        if self.device.type != "cuda":
            return self.least({"calls": lambda: [call() for call in calls]})["calls"] / len(calls)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return self.least({"graph": graph.replay})["graph"] / len(calls)

    def _once(self, call: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end))


def exact(name: str, device: torch.device) -> bool:
    """Whether random blocks mean the same on the device as on the CPU, by each backend and in each dtype."""
    kind = type_by_name(name)
    weights = 1000 * kind.block_size
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (kind.size_bytes(weights),), dtype=torch.uint8, generator=generator)
    expected = dequantize(blocks, kind, (weights,), backend="eager")
    run = partial(dequantize, blocks.to(device), kind, (weights,))
    choices = pairs(BACKENDS, (torch.float32, torch.bfloat16))
    return all(same_bits(run(backend=backend, dtype=dtype).cpu(), expected.to(dtype)) for backend, dtype in choices)


def table_of_types(names: Sequence[str], size: int, timer: Timer, peer: Any) -> None:
    """Print the first table."""
    device = timer.device
    source = torch.ones(FLUSH_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = timer.least({"copy": lambda: target.copy_(source)})["copy"]
    copy_rate = 2 * FLUSH_BYTES / copy_ms / 1e6
    print(f"\na copy moves {copy_rate:.0f} GB/s (read and written)")
    columns = f"{'type':<9}{'exact':>7}{'kernel ms':>11}{'GB/s':>8}{'of copy':>9}"
    print(f"{columns}{'auto ms':>10}{'eager ms':>10}{'peer ms':>10}")
    for name in names:
        kind = type_by_name(name)
        blocks = tame_blocks(kind, size * size).to(device)
        shape, out, pool = (size, size), torch.empty(size, size, dtype=torch.bfloat16, device=device), ScratchPool()
        run = partial(dequantize, blocks, kind, shape, dtype=torch.bfloat16, out=out, scratch=pool)
        timed: dict[str, Callable[[], Any]] = {"auto": run, "eager": partial(run, backend="eager")}
        if peer is not None and name in PEER_TYPES:
            timed["peer"] = partial(peer_weights, peer, name, blocks, shape)
        least = timer.least(timed)
        copies = range(-(-FLUSH_BYTES // (blocks.nbytes + out.nbytes)))
        others = [(blocks.clone(), torch.empty_like(out)) for _ in copies] if device.type == "cuda" else [(blocks, out)]
        kernel_ms = timer.each([partial(dequantize, b, kind, shape, dtype=o.dtype, out=o) for b, o in others])
        rate = (blocks.nbytes + out.nbytes) / kernel_ms / 1e6
        peer_ms = f"{least['peer']:>10.3f}" if "peer" in least else f"{'-':>10}"
        is_exact = "yes" if exact(name, device) else "NO"
        print(
            f"{name:<9}{is_exact:>7}{kernel_ms:>11.3f}{rate:>8.0f}{rate / copy_rate:>9.2f}"
            f"{least['auto']:>10.3f}{least['eager']:>10.3f}{peer_ms}",
            flush=True,
        )


def peer_weights(peer: Any, name: str, blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """ComfyUI-GGUF's weights, as its layers ask for them by default."""
    import gguf

    number = gguf.GGMLQuantizationType[name]
    found: Tensor = peer.dequantize(blocks.view(shape[0], -1), number, shape, dtype=None).to(torch.bfloat16)
    return found


def product(x: Tensor, make_dense: Callable[[], Tensor]) -> Tensor:
    """A linear layer whose weight is made dense as a whole first."""
    return nn.functional.linear(x, make_dense())


def fetched(blocks: Tensor, kind: GgmlType, out: Tensor) -> Tensor:
    """Blocks from the host, dense on the device of `out`."""
    moved = blocks.to(out.device, non_blocking=True)
    return dequantize(moved, kind, out.shape, dtype=out.dtype, out=out)


def table_of_layers(size: int, timer: Timer, peer: Any) -> None:
    """Print the second and the third table."""
    device, kind, dtype = timer.device, type_by_name("Q4_K"), torch.bfloat16
    blocks = tame_blocks(kind, size * size).to(device)
    packed = PackedTensor(blocks, kind, (size, size))
    dense = packed.dequantize(dtype)
    layer = layer_with(blocks, kind, size, dtype, [])
    print(f"\nlinear layer, Q4_K {size}x{size}, bfloat16, ms")
    print(f"{'tokens':>7}{'dense':>9}{'packed':>9}{'1 Mi tiles':>12}{'whole, then product':>21}{'peer':>9}")
    for tokens in (1, 77, 512, 4096):
        x = torch.randn(tokens, size, device=device).to(dtype)
        tiled = layer_with(blocks, kind, size, dtype, [])
        configure(tiled, DequantConfig(tile_weights=1 << 20))
        timed: dict[str, Callable[[], Any]] = {
            "dense": partial(nn.functional.linear, x, dense),
            "packed": partial(layer, x),
            "tiled": partial(tiled, x),
            "whole": partial(product, x, partial(packed.dequantize, dtype)),
        }
        if peer is not None:
            timed["peer"] = partial(product, x, partial(peer_weights, peer, "Q4_K", blocks, (size, size)))
        least = timer.least(timed)
        peer_ms = f"{least['peer']:>9.3f}" if "peer" in least else f"{'-':>9}"
        print(
            f"{tokens:>7}{least['dense']:>9.3f}{least['packed']:>9.3f}{least['tiled']:>12.3f}{least['whole']:>21.3f}"
            f"{peer_ms}",
            flush=True,
        )

    print(f"\nLoRA of rank 32 beside the layer, 512 tokens\n{'adapters':>8}{'ms':>9}{'cost':>8}")
    x = torch.randn(512, size, device=device).to(dtype)
    layers = {count: layer_with(blocks, kind, size, dtype, adapters(count, size, 32, dtype)) for count in (0, 1, 4, 8)}
    least = timer.least({str(count): partial(layer, x) for count, layer in layers.items()})
    for count in layers:
        print(f"{count:>8}{least[str(count)]:>9.3f}{least[str(count)] / least['0'] - 1:>8.1%}", flush=True)


def table_of_streaming(size: int, timer: Timer) -> None:
    """Print the fourth table."""
    device = timer.device
    pin = device.type == "cuda"
    out = torch.empty(size, size, dtype=torch.bfloat16, device=device)
    host = torch.ones(size, size, dtype=torch.bfloat16, pin_memory=pin)
    print(f"\nfrom the host's {'pinned ' if pin else ''}memory to dense weights on the device, ms")
    print(f"{'type':<9}{'packed':>9}{'dense copy':>12}{'ratio':>8}")
    for name in ("Q8_0", "Q6_K", "Q4_K", "Q2_K"):
        kind = type_by_name(name)
        blocks = tame_blocks(kind, size * size)
        blocks = blocks.pin_memory() if pin else blocks
        least = timer.least(
            {"packed": partial(fetched, blocks, kind, out), "dense": partial(out.copy_, host, non_blocking=True)}
        )
        ratio = least["dense"] / least["packed"]
        print(f"{name:<9}{least['packed']:>9.3f}{least['dense']:>12.3f}{ratio:>8.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, name the device, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(BLOCK_TYPES))
    parser.add_argument("--comfyui-gguf", type=Path)
    options = parser.parse_args(arguments)
    device = options.device
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("this machine has no CUDA device; --device cpu only shows that the script works")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, {time.strftime('%Y-%m-%d')}")
    peer = None if options.comfyui_gguf is None else load_peer(options.comfyui_gguf)
    timer = Timer(device, options.repeats)
    with torch.no_grad():
        table_of_types(options.types, options.size, timer, peer)
        table_of_layers(options.size, timer, peer)
        table_of_streaming(options.size, timer)


if __name__ == "__main__":
    main()
