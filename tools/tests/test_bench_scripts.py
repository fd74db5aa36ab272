"""The benchmarks start: each explains itself, and the one for a GPU says so where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = sorted(path for path in BENCH.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_explains_itself(script: Path) -> None:
    explained = run(script, "--help")
    assert explained.returncode == 0, explained.stderr
    assert f"usage: {script.name}" in explained.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, and the whole benchmark would run")
def test_the_streaming_benchmark_wants_a_gpu() -> None:
    refused = run(BENCH / "cuda_streaming.py")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "needs a CUDA GPU" in refused.stderr


@pytest.mark.slow
def test_the_streaming_benchmark_works_where_nothing_streams() -> None:
    done = run(
        BENCH / "cuda_streaming.py", "--device", "cpu", "--width", "128", "--blocks", "3", "--tokens", "16",
        "--passes", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ways = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.endswith("| yes |")]
    assert ways == ["resident", "serial copies", "accelerate cpu_offload"]
