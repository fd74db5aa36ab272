"""What several GPUs bring for one model, beside what the cost model predicts. Needs two CUDA GPUs or more.

Usage: python tools/bench/cuda_multi_gpu.py [--gpus 2] [--frames 21] [--height 60] [--width 104] [--layers 40]
       [--kinds ulysses,ring,all_gather] [--link 6.0] [--steps 5]

The model is diffusers' Wan transformer with random weights in bf16; the default is the shape of Wan 2.1 14B at 832 x
480 and 81 frames (fewer layers fit into less memory). One worker alone gives the seconds of a forward, then each kind
runs on all GPUs: seconds a forward, speed-up, gigabytes that a GPU sent, what the cost model predicts for a link of
--link GB/s, and the difference of the results, relative to the largest value (bf16 sums in another order differ by
about 1e-2). `--device cpu --heads 2 --layers 1 --frames 3 --height 6 --width 6` tries the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ray_parallel import Runner, RunResult
from ray_parallel.sequence import Kind, Link, Workload, predict
from ray_parallel.workers import GroupOptions

HEAD_DIM, TEXT_TOKENS, TEXT_DIM, CHANNELS = 128, 512, 4096, 16


def write_model(path: Path, layers: int, heads: int) -> dict[str, Any]:
    """Random weights of a Wan transformer of this many layers; returns what builds it."""
    import diffusers

    arguments = {
        "num_attention_heads": heads, "attention_head_dim": HEAD_DIM, "in_channels": CHANNELS, "out_channels": CHANNELS,
        "text_dim": TEXT_DIM, "freq_dim": 256, "ffn_dim": 13824 * heads // 40, "num_layers": layers,
    }  # fmt: skip
    with torch.device("meta"):
        shapes = diffusers.WanTransformer3DModel(**arguments).state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(tensor.shape, generator=generator) * 0.02).to(torch.bfloat16)
        for name, tensor in shapes.items()
    }
    save_file(weights, path)
    return arguments


def forwards(runner: Runner, inputs: dict[str, Any], steps: int) -> RunResult:
    """Forwards without the first, which compiles kernels and opens connections."""
    runner.run(loop="bench_tasks:forwards", inputs=inputs, count=1)
    return runner.run(loop="bench_tasks:forwards", inputs=inputs, count=steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure one GPU and all of them, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--frames", type=int, default=21, help="latent frames (default: 21, of 81)")
    parser.add_argument("--height", type=int, default=60, help="latent height (default: 60, of 480)")
    parser.add_argument("--width", type=int, default=104, help="latent width (default: 104, of 832)")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--kinds", default="ulysses,ring,all_gather")
    parser.add_argument("--link", type=float, default=6.0, metavar="GBPS", help="for the prediction (default: 6.0)")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--heads", type=int, default=40, help="of 128 features (default: 40)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and torch.cuda.device_count() < options.gpus:
        print(f"needs {options.gpus} CUDA GPUs, this process sees {torch.cuda.device_count()}", file=sys.stderr)
        return 1
    inputs = {
        "hidden_states": torch.randn(1, CHANNELS, options.frames, options.height, options.width, dtype=torch.bfloat16),
        "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, TEXT_DIM, dtype=torch.bfloat16),
        "return_dict": False,
    }
    tokens = options.frames * (options.height // 2) * (options.width // 2)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    name = torch.cuda.get_device_name(0) if options.device == "cuda" else "CPU worker"
    print(f"{today}, {options.gpus} x {name}, torch {torch.__version__}, {tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wan.safetensors"
        shape = write_model(path, options.layers, options.heads)
        model = "diffusers:WanTransformer3DModel"
        with Runner(
            model, arguments=shape, weights=path, options=GroupOptions(workers=1, device=options.device)
        ) as alone:
            reference = forwards(alone, inputs, options.steps)
        one = reference.seconds / options.steps
        print(
            f"{'':<12}{'s a forward':>12}{'speed-up':>10}{'predicted':>11}{'GB sent':>9}{'predicted':>11}{'differs':>9}"
        )
        print(f"{'one alone':<12}{one:>12.3f}{1:>9.2f}x")
        work = Workload(
            tokens=tokens,
            heads=options.heads,
            head_dim=HEAD_DIM,
            layers=options.layers,
            forward_seconds=one,
            conditions=1,
        )
        for kind in options.kinds.split(","):
            chosen: Kind = kind
            prediction = predict(work, Link(bytes_per_second=options.link * 1e9), sequence=options.gpus, kind=chosen)
            several = GroupOptions(workers=options.gpus, device=options.device)
            with Runner(model, arguments=shape, weights=path, kind=chosen, options=several) as runner:
                found = forwards(runner, inputs, options.steps)
            seconds, scale = found.seconds / options.steps, reference.latents.abs().max()
            difference = ((found.latents - reference.latents).abs().max() / scale).item()
            print(
                f"{kind:<12}{seconds:>12.3f}{one / seconds:>9.2f}x{prediction.speedup:>10.2f}x"
                f"{max(found.sent_bytes) / options.steps / 1e9:>9.2f}{prediction.sent_bytes / 1e9:>11.2f}"
                f"{difference:>9.1e}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
