"""Run a model on two Ray workers that map the same file of weights and share the tokens.

Without a GPU the workers compute on the CPU. Everything listens on the loopback address and ends with the run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import ray_parallel
from example_model import PLAN, Transformer
from ray_parallel.workers import GroupOptions

SHAPE = {"depth": 2, "width": 64}


def main() -> None:
    """Denoise on two workers, denoise here, and compare."""
    torch.manual_seed(0)
    model = Transformer(**SHAPE).eval()
    loop: dict[str, Any] = {"latents": torch.randn(1, 37, 64), "sigmas": [1.0, 0.5, 0.0], "inputs": {}}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "model.safetensors")
        save_file(model.state_dict(), weights)
        result = ray_parallel.run(
            "example_model:Transformer",
            model_arguments=SHAPE,
            weights=weights,
            plan=PLAN,
            options=GroupOptions(workers=2, device="cpu", threads=1),
            on_step=lambda progress: print(f"step {progress.done} of {progress.of}"),
            **loop,
        )
    with torch.no_grad():
        alone = ray_parallel.flow_euler(model, lambda *step: None, **loop)
    difference = ((result.latents - alone).abs().max() / alone.abs().max()).item()
    print(f"{difference:.1e} from one process")
    assert difference <= 1e-6


if __name__ == "__main__":
    main()
