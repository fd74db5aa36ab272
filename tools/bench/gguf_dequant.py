"""Dequantisation of every type against gguf.quants, ComfyUI-GGUF and a plain copy, in one table.

Usage: python tools/bench/gguf_dequant.py [--size 4096] [--threads 1] [--repeats 7] [--types Q4_K,Q8_0]
       [--comfyui-gguf PATH-OF-A-CHECKOUT] [--no-memory] [--clock cpu]

All variants of a type take turns, and each one's least time counts, so that a busy machine hurts them alike. Rates are
GB/s of output. Where others use the machine, `--clock cpu` counts the time that the one thread ran instead of the time
on the wall. "copy" is float32 to float32 into an existing tensor, the least that writing the output can cost. "temp" is
what one call adds to the resident set of a fresh process, the output apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "gguf-loader" / "tests"))

from gguf_packing import BLOCK_TYPES, NOT_IN_GGUF_PY, tame_blocks

from gguf_loader import ScratchPool, dequantize, type_by_name

COPY = "copy"
PEER_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""What ComfyUI-GGUF dequantises in torch; it hands the rest to gguf.quants."""

FOURFOLD = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
COPY_SHARES = {"Q8_0": 0.6, "Q4_K": 0.25, "Q6_K": 0.25}

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}

MEMORY_SCRIPT = """
import sys, torch
sys.path[:0] = [{bench!r}]
import gguf_dequant as bench
bench.print_memory({name!r}, {variant!r}, {size}, {threads}, {peer!r})
"""


def load_peer(checkout: Path) -> Any:
    """ComfyUI-GGUF's dequantisation module, which needs nothing of ComfyUI."""
    spec = importlib.util.spec_from_file_location("comfyui_gguf_dequant", checkout / "dequant.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(name: str, size: int, peer: Any) -> dict[str, Callable[[], Any]]:
    """What is timed for a type; each makes (size, size) weights of the same blocks."""
    kind = type_by_name(name)
    blocks = tame_blocks(kind, size * size)
    shape, pool = (size, size), ScratchPool()
    outs = {dtype: torch.ones(shape, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    found: dict[str, Callable[[], Any]] = {
        "f32 out=": lambda: dequantize(blocks, kind, shape, out=outs[torch.float32], scratch=pool),
        "f32 fresh": lambda: dequantize(blocks, kind, shape, scratch=pool),
        "bf16 out=": lambda: dequantize(
            blocks, kind, shape, dtype=torch.bfloat16, out=outs[torch.bfloat16], scratch=pool
        ),
        "bf16 fresh": lambda: dequantize(blocks, kind, shape, dtype=torch.bfloat16, scratch=pool),
    }
    if name not in NOT_IN_GGUF_PY:
        number: Any = gguf.GGMLQuantizationType[name]
        array = blocks.numpy().reshape(size, -1)
        found["gguf.quants f32"] = lambda: gguf.quants.dequantize(array, number)
        if peer is not None and name in PEER_TYPES:
            rows = blocks.view(size, -1)
            # As its layers call it by default: arithmetic in float16, then a conversion.
            found["ComfyUI-GGUF bf16"] = lambda: peer.dequantize(rows, number, shape, dtype=None).to(torch.bfloat16)
    return found


def least_seconds(
    timed: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Least time of each variant, the variants taking turns."""
    least = dict.fromkeys(timed, float("inf"))
    for _ in range(repeats):
        for label, call in timed.items():
            start = clock()
            call()
            least[label] = min(least[label], clock() - start)
    return least


def measure(name: str, size: int, repeats: int, peer: Any, clock: Callable[[], float]) -> dict[str, float]:
    """Rates of a type's variants and of the copy, in GB/s of output."""
    source, target = torch.rand(size, size), torch.empty(size, size)
    timed = {COPY: lambda: target.copy_(source), **variants(name, size, peer)}
    weight_bytes = {label: 2 if "bf16" in label else 4 for label in timed}
    with np.errstate(all="ignore"):
        seconds = least_seconds(timed, repeats, clock)
    return {label: size * size * weight_bytes[label] / seconds[label] / 1e9 for label in timed}


def print_memory(name: str, variant: str, size: int, threads: int, peer: str | None) -> None:
    """Print the MiB that one call adds to the peak resident set, its fresh output included."""
    torch.set_num_threads(threads)
    module = None if peer is None else load_peer(Path(peer))
    variants(name, 256, module)[variant]()
    call = variants(name, size, module)[variant]
    # "5" resets the peak; see proc_pid_clear_refs(5).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    kept = call()
    print((_status("VmHWM") - before) / 1024)
    del kept


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def temporary_mebibytes(name: str, variant: str, size: int, threads: int, peer: Path | None) -> float:
    """Peak memory of one call in a fresh process, less a fresh output."""
    script = MEMORY_SCRIPT.format(
        bench=str(Path(__file__).parent),
        name=name,
        variant=variant,
        size=size,
        threads=threads,
        peer=None if peer is None else str(peer),
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    output = 0 if variant.endswith("out=") else size * size * (2 if "bf16" in variant else 4)
    return float(result.stdout) - output / (1 << 20)


def goals(rates: Mapping[str, Mapping[str, float]], memory: Mapping[str, float]) -> list[tuple[str, bool]]:
    """The goals of the package that this run can judge, each with whether it was met."""
    judged = []
    for name, rate in rates.items():
        peer, quants = rate.get("ComfyUI-GGUF bf16"), rate.get("gguf.quants f32")
        if peer is not None and name in FOURFOLD:
            reused, fresh = rate["bf16 out="] / peer, rate["bf16 fresh"] / peer
            judged.append((f"{name}: {reused:.1f}x ComfyUI-GGUF with out= (>= 4)", reused >= 4))
            judged.append((f"{name}: {fresh:.1f}x ComfyUI-GGUF fresh (>= 2)", fresh >= 2))
        elif quants is not None:
            faster = rate["f32 out="] / quants
            judged.append((f"{name}: {faster:.1f}x gguf.quants (>= 2)", faster >= 2))
        if name in COPY_SHARES:
            share, wanted = rate["f32 out="] / rate[COPY], COPY_SHARES[name]
            judged.append((f"{name}: {share:.2f} of the copy ceiling (>= {wanted})", share >= wanted))
        if name in memory:
            judged.append((f"{name}: {memory[name]:.1f} MiB temporary (<= 8)", memory[name] <= 8))
    return judged


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure type by type, print the table and the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns; a multiple of 256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(BLOCK_TYPES))
    parser.add_argument("--comfyui-gguf", type=Path, help="a checkout of ComfyUI-GGUF to compare with")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-memory", action="store_true", help="do not measure temporary memory (Linux only)")
    parser.add_argument("--json", type=Path, help="write the rates here, too")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu counts one thread; use --threads 1")
    torch.set_num_threads(options.threads)
    peer = None if options.comfyui_gguf is None else load_peer(options.comfyui_gguf)

    print(
        f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s), {options.clock} clock, "
        f"{time.strftime('%Y-%m-%d')}"
    )
    columns = ("f32 out=", "f32 fresh", "gguf.quants f32", "bf16 out=", "bf16 fresh", "ComfyUI-GGUF bf16", COPY)
    print(f"{'GB/s':<9}" + "".join(f"{column:>18}" for column in columns) + f"{'of copy':>9}{'temp MiB':>10}")
    rates: dict[str, dict[str, float]] = {}
    memory: dict[str, float] = {}
    for name in options.types:
        rate = rates[name] = measure(name, options.size, options.repeats, peer, CLOCKS[options.clock])
        cells = "".join(f"{rate[column]:>18.2f}" if column in rate else f"{'-':>18}" for column in columns)
        last = f"{rate['f32 out='] / rate[COPY]:>9.2f}"
        if not options.no_memory:
            memory[name] = max(
                temporary_mebibytes(name, variant, options.size, options.threads, None)
                for variant in ("bf16 out=", "f32 fresh")
            )
            last += f"{memory[name]:>10.1f}"
        print(f"{name:<9}{cells}{last}", flush=True)
    judged = goals(rates, memory)
    print(f"\n{sum(met for _, met in judged)} of {len(judged)} goals met")
    for text, met in judged:
        if not met:
            print(f"missed: {text}")
    if options.json is not None:
        options.json.write_text(json.dumps({"rates": rates, "temporary_mebibytes": memory}, indent=1))


if __name__ == "__main__":
    main()
