"""The part of the demo with several processes: optional, bounded, and checked."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode
from comfy_nodes.cli.demo import _demo
from comfy_nodes.cli.demo._file import gguf_file, safetensors_file
from comfy_nodes.cli.demo._model import DemoConfig, model_of, random_weights, sample
from comfy_nodes.cli.demo._run import Run

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
    monkeypatch.delitem(sys.modules, "comfy_nodes.cli.demo._workers", raising=False)
    assert left_out(2, safetensors_file()) == 0.0
    assert 'ray-parallel is not installed; pip install "comfy-nodes[ray]" adds it' in capsys.readouterr().out
    assert "comfy_nodes.cli.demo._workers" not in sys.modules


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


def test_a_worker_builds_and_runs_what_one_process_runs() -> None:
    workers = pytest.importorskip("ray_parallel") and importlib.import_module("comfy_nodes.cli.demo._workers")
    config = DemoConfig(blocks=2, width=32, heads=2, image_size=8)
    model = workers.build(**asdict(config))
    model.load_state_dict(random_weights(config, seed=3))
    told: list[tuple[int, int]] = []
    latent = workers.loop(
        model.eval(), lambda done, total: told.append((done, total)), shape=asdict(config), steps=3, seed=5
    )
    assert torch.equal(latent, sample(model_of(config, random_weights(config, seed=3)), config, steps=3, seed=5))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("lost_bytes", "words"), [(0, "exactly as the cost model counts"), (1, "MiB that are the cost")]
)
def test_traffic_is_compared_with_what_the_cost_model_counts(
    lost_bytes: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parallel = pytest.importorskip("ray_parallel")
    sequence = importlib.import_module("ray_parallel.sequence")
    workers = importlib.import_module("comfy_nodes.cli.demo._workers")
    config = DemoConfig(blocks=4)
    work = workers.workload(config, REFERENCE.steady_seconds)
    assert (work.tokens, work.heads * work.head_dim, work.layers) == (config.tokens, config.width, 4)
    sent = tuple(
        sequence.forward_bytes(work, "ulysses", 2, rank=rank) + sequence.joining_bytes(work, 2, rank=rank) - lost_bytes
        for rank in range(2)
    )
    result = parallel.RunResult(latents=torch.ones(1), seconds=0.5, sent_bytes=sent)
    sharing = importlib.import_module("ray_parallel.workers").SharingReport(
        mode="file", weights_bytes=7 << 20, shares=()
    )
    workers._report(config, REFERENCE, result, sharing, 3e-7, 2)
    out = capsys.readouterr().out
    assert words in out
    assert "a step takes 500 ms" in out and "in one process 1 s" in out
    assert "sharing: 7 MiB of weights by file; the sharing is not measured here" in out
    assert out.endswith("relative difference to the single process: 3.0e-07\n")


def test_threads_of_all_workers_together_are_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray_parallel")
    workers = importlib.import_module("comfy_nodes.cli.demo._workers")
    for cores, count, threads in ((8, 2, 4), (2, 4, 1), (None, 2, 1)):
        monkeypatch.setattr(workers.os, "cpu_count", lambda cores=cores: cores)
        assert workers._threads(count) == threads
