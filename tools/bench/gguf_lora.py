"""What LoRA costs on packed weights: terms of the activations against patched weights.

Usage: python tools/bench/gguf_lora.py [--size 4096] [--tokens 77] [--rank 32] [--type Q4_K] [--dtype bfloat16]
       [--threads 1] [--repeats 7] [--clock cpu] [--comfyui-gguf PATH-OF-A-CHECKOUT]

One linear layer with 0 to 8 adapters. "patched" adds the adapters to a dequantised weight in every forward, as a host
does that keeps weights packed and patches what it dequantises; with a checkout of ComfyUI-GGUF its dequantisation is
the one that is patched, otherwise this package's own. Variants take turns, the least time counts.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf_dequant import CLOCKS, least_seconds, load_peer
from gguf_packing import tame_blocks
from torch import Tensor, nn

from gguf_loader import (
    GgmlType,
    LowRank,
    PackedTensor,
    add_lora,
    load_packed,
    lora_strengths,
    set_lora_strength,
    type_by_name,
)

COUNTS = (0, 1, 2, 4, 8)


def adapters(count: int, size: int, rank: int, dtype: torch.dtype) -> list[LowRank]:
    """Random low-rank pairs."""
    return [
        LowRank(down=torch.randn(rank, size).to(dtype) / size, up=torch.randn(size, rank).to(dtype))
        for _ in range(count)
    ]


def layer_with(blocks: Tensor, kind: GgmlType, size: int, dtype: torch.dtype, low_rank: list[LowRank]) -> nn.Linear:
    """A packed layer with adapters beside it."""
    layer = nn.Linear(size, size, bias=False, device="meta", dtype=dtype)
    load_packed(layer, {"weight": PackedTensor(blocks, kind, (size, size))})
    for index, adapter in enumerate(low_rank):
        add_lora(layer, f"adapter {index}", {"": adapter})
    return layer


def dequantizer(
    blocks: Tensor, kind: GgmlType, size: int, dtype: torch.dtype, checkout: Path | None
) -> Callable[[], Tensor]:
    """What makes the weight dense in every forward of the patched layer."""
    if checkout is None:
        packed = PackedTensor(blocks, kind, (size, size))
        return lambda: packed.dequantize(dtype)
    import gguf

    peer, number = load_peer(checkout), gguf.GGMLQuantizationType[kind.name]
    rows = blocks.view(size, -1)

    def dequantize() -> Tensor:
        found: Tensor = peer.dequantize(rows, number, (size, size), dtype=None).to(dtype)
        return found

    return dequantize


def patched_forward(x: Tensor, dequantize: Callable[[], Tensor], low_rank: list[LowRank]) -> Tensor:
    """A forward that adds the adapters to the weight."""
    weight = dequantize()
    for adapter in low_rank:
        weight = weight + (adapter.up @ adapter.down) * adapter.scale
    return nn.functional.linear(x, weight)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--type", default="Q4_K")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--comfyui-gguf", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    kind = type_by_name(options.type)
    blocks = tame_blocks(kind, options.size**2)
    dequantize = dequantizer(blocks, kind, options.size, dtype, options.comfyui_gguf)
    x = torch.randn(options.tokens, options.size).to(dtype)

    timed: dict[str, Callable[[], Any]] = {}
    for count in COUNTS:
        low_rank = adapters(count, options.size, options.rank, dtype)
        layer = layer_with(blocks, kind, options.size, dtype, low_rank)
        timed[f"beside {count}"] = partial(layer, x)
        timed[f"patched {count}"] = partial(patched_forward, x, dequantize, low_rank)
    strengths = iter(range(1, 1 << 30))
    timed["strength"] = lambda: set_lora_strength(layer, "adapter 0", 1 / next(strengths))
    with torch.no_grad():
        seconds = least_seconds(timed, options.repeats, CLOCKS[options.clock])

    print(
        f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s), {options.clock} clock, "
        f"{time.strftime('%Y-%m-%d')}: {kind.name} {options.size}x{options.size}, {options.tokens} tokens, "
        f"rank {options.rank}, {options.dtype}"
    )
    whose = "this package's" if options.comfyui_gguf is None else "ComfyUI-GGUF's"
    print(f"{'adapters':>8}{'beside ms':>11}{'cost':>8}{f'patched ms ({whose} dequantisation)':>48}{'ratio':>8}")
    for count in COUNTS:
        beside, patched = seconds[f"beside {count}"], seconds[f"patched {count}"]
        cost = beside / seconds["beside 0"] - 1
        print(f"{count:>8}{beside * 1e3:>11.2f}{cost:>8.1%}{patched * 1e3:>48.2f}{patched / beside:>8.1f}")
    print(f"a change of strength with {len(lora_strengths(layer))} adapters: {seconds['strength'] * 1e6:.0f} us")


if __name__ == "__main__":
    main()
