"""The part of `soak.py` that needs ComfyUI: placed and packed models on simulated devices, used and abused.

Usage: python tools/bench/soak_host.py [--minutes 30] [--seed 1]     (COMFYUI_PATH, or a checkout in the cache)

Everything that is sampled must be the picture of the stock model on one device, to the bit.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests-integration"))
sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "comfy-nodes" / "tests"))

from soak import report, soak
from soak_operation import Operation

from get_comfyui import find_comfyui

DEVICES = 4
SPECS = ("npu:0,1mb;npu:1,1mb;cpu,*", "npu:0,0mb;npu:1,*", "cpu,*", "npu:0,*", "auto")
PACKED_SPECS = ("npu:0,200kb;npu:1,200kb;cpu,*", "cpu,*")


def operations(host: Any) -> list[Operation]:
    """What a person does with a placed model; each leaves the devices empty.

    Args:
        host: ComfyUI in this process, as the tests of comfy-nodes start it.
    """
    adapter = importlib.import_module("comfy_nodes.host")
    testing = importlib.import_module("host_testing")
    import torch

    def expected(kind: str, strength: float) -> Any:
        key = (kind, strength)
        if key not in known:
            model = host.stock(host.diffusion(kind))
            known[key] = host.sample(host.lora(model, strength) if strength else model)
            host.free_all()
        return known[key]

    known: dict[tuple[str, float], Any] = {}

    def same(left: Any, right: Any, what: str) -> None:
        if not torch.equal(left, right):
            raise AssertionError(f"{what}: latents differ by {(left - right).abs().max()}")

    def placed(rng: random.Random, packed: bool) -> tuple[Any, str]:
        if packed:
            request = testing.request(rng.choice(PACKED_SPECS))
            return adapter.load_gguf_diffusion_model(host.diffusion("packed"), request).value, "dense"
        return adapter.load_diffusion_model(host.diffusion(), testing.request(rng.choice(SPECS))).value, "plain"

    def over() -> None:
        gc.collect()
        host.free_all()
        if host.used() != [0] * DEVICES:
            raise AssertionError(f"devices still hold {host.used()} bytes")
        violations = importlib.import_module("simdev").take_violations()
        if violations:
            raise AssertionError(f"{len(violations)} races, the first {violations[0]}")

    def sample(rng: random.Random, folder: Path) -> str:
        model, twin = placed(rng, packed=False)
        strength = rng.choice([0.0, 0.8])
        same(host.sample(host.lora(model, strength) if strength else model), expected(twin, strength), "placed")
        if rng.random() < 0.5:
            same(host.sample(model), expected(twin, 0.0), "placed, without its LoRA")
        del model
        over()
        return f"LoRA {strength}"

    def sample_packed(rng: random.Random, folder: Path) -> str:
        model, _ = placed(rng, packed=True)
        first = host.sample(model)
        same(host.sample(model), first, "packed, once more")
        del model
        over()
        return "packed"

    def interrupted(rng: random.Random, folder: Path) -> str:
        model, twin = placed(rng, packed=False)
        interruption = host.management.InterruptProcessingException
        try:
            host.sample(model, after_step=lambda _: host.management.interrupt_current_processing())
        except interruption:
            pass
        else:
            raise AssertionError("the interruption was lost")
        same(host.sample(model), expected(twin, 0.0), "after an interruption")
        del model
        over()
        return "interrupted"

    def freed(rng: random.Random, folder: Path) -> str:
        model, twin = placed(rng, packed=False)
        same(host.sample(model, after_step=lambda _: None), expected(twin, 0.0), "placed")
        host.free_all()
        same(host.sample(model), expected(twin, 0.0), "after everything was freed")
        del model
        over()
        return "freed"

    return [
        Operation(name="host: sample", weight=4, run=sample),
        Operation(name="host: packed", weight=2, run=sample_packed),
        Operation(name="host: interrupted", weight=1, run=interrupted),
        Operation(name="host: freed", weight=1, run=freed),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, start the host, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    checkout = find_comfyui()
    if checkout is None:
        print("no ComfyUI checkout: set COMFYUI_PATH, or run tools/get_comfyui.py", file=sys.stderr)
        return 2
    testing = importlib.import_module("host_testing")
    with tempfile.TemporaryDirectory() as models, tempfile.TemporaryDirectory() as folder:
        host = testing.start_host(checkout, Path(models))
        counts, samples = soak(operations(host), seconds=60 * given.minutes, seed=given.seed, folder=Path(folder))
    return report(counts, samples)


if __name__ == "__main__":
    raise SystemExit(main())
