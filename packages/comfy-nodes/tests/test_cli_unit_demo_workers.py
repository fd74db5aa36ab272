"""The part of the demo with several processes: optional, bounded, and checked."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_nodes.cli import _demo, main
from comfy_nodes.cli._demo_file import gguf_file, safetensors_file
from comfy_nodes.cli._demo_model import DemoConfig
from comfy_nodes.cli._demo_run import Run
from comfy_nodes.cli._exit import ExitCode

REFERENCE = Run(latent=torch.ones(1), pass_seconds=(1.0,))


def left_out(workers: int, file: Any) -> float:
    return _demo._on_workers(file, Path("nowhere"), REFERENCE, DemoConfig(blocks=1), workers)


def test_it_is_left_out_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert left_out(0, safetensors_file()) == 0.0
    assert "left out, as --workers 0 asks for" in capsys.readouterr().out


def test_without_ray_parallel_a_sentence_says_what_adds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray_parallel" else real(name))
    monkeypatch.delitem(sys.modules, "comfy_nodes.cli._demo_workers", raising=False)
    assert left_out(2, safetensors_file()) == 0.0
    assert 'ray-parallel is not installed; pip install "comfy-nodes[ray]" adds it' in capsys.readouterr().out
    assert "comfy_nodes.cli._demo_workers" not in sys.modules


def test_a_quantised_model_stays_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert left_out(2, gguf_file("Q8_0")) == 0.0
    assert "run it without --gguf" in capsys.readouterr().out


def test_another_result_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(_demo, "_on_workers", lambda *_: 2e-6)
    words = ["demo", "--blocks", "8", "--steps", "2", "--no-svg", "--out", str(tmp_path)]
    assert main(words) == ExitCode.REFUSED
    assert (
        "the workers computed something else than one process: relative difference 2.0e-06" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_two_workers_give_the_latent_of_one_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("ray_parallel")
    words = ["demo", "--blocks", "8", "--steps", "3", "--no-svg", "--out", str(tmp_path)]
    assert main(words) == ExitCode.OK, capsys.readouterr().err
    out = capsys.readouterr().out
    (told,) = (line for line in out.splitlines() if line.startswith("relative difference to the single process: "))
    assert 0.0 <= float(told.rpartition(" ")[2]) <= 1e-6
    assert "weights by file, 2 workers hold" in out
    assert "0.0 MiB of it their own" in out
    assert "2 workers ... " in out
    assert re.search(r"sent up to \d+\.\d\d MiB, exactly as the cost model counts", out), out
    assert re.search(r"predicted for 2 devices .*: [\d.]+ ms a step, 1\.\d\d x as fast", out), out
