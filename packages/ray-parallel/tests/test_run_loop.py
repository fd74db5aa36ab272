"""The loop, the model built around shared weights, and what importing this package does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_models import PLAN, Transformer, Unfilled, alone, noise, weights
from shared_examples import write_file
from torch import nn

import ray_parallel
from ray_parallel import flow_euler
from ray_parallel._in_worker import Built, model_from, sample
from ray_parallel._run import FLOW_EULER
from ray_parallel.sequence import (
    Kind,
    ThreadComm,
    Workload,
    forward_bytes,
    joining_bytes,
    parallelize,
    run_threads,
)
from ray_parallel.workers import SharedWeights, WeightsError, WorkerContext


class Constant(nn.Module):
    """Predicts that the noise is one everywhere, and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, Any]] = []

    def forward(self, sample: torch.Tensor, t: torch.Tensor, extra: Any = None) -> torch.Tensor:
        self.seen.append((t[0].item(), extra))
        assert t.shape == (sample.shape[0],)
        return torch.ones_like(sample)


def test_a_constant_velocity_moves_by_the_whole_way() -> None:
    model, steps = Constant(), []
    result = flow_euler(
        model,
        lambda *told: steps.append(told),
        latents=torch.full((2, 3), 5.0),
        sigmas=[1.0, 0.7, 0.2, 0.0],
        inputs={"extra": "text"},
        latents_name="sample",
        timestep_name="t",
        timestep_scale=1000.0,
    )
    assert torch.allclose(result, torch.full((2, 3), 4.0))
    assert [extra for _, extra in model.seen] == ["text"] * 3
    assert [time for time, _ in model.seen] == pytest.approx([1000.0, 700.0, 200.0])
    assert steps == [(1, 3, None), (2, 3, None), (3, 3, None)]


def test_previews_are_the_latents_of_the_step() -> None:
    previews: list[torch.Tensor] = []
    result = flow_euler(
        Constant(), lambda done, of, preview: previews.append(preview), latents=torch.zeros(1, 2),
        sigmas=[1.0, 0.5, 0.0], inputs={}, latents_name="sample", timestep_name="t", previews=True,
    )  # fmt: skip
    assert [preview[0, 0].item() for preview in previews] == [-0.5, -1.0]
    assert torch.equal(previews[-1], result)


def test_a_model_is_built_around_the_shared_memory(tmp_path: Path) -> None:
    opened = SharedWeights.from_file(write_file(tmp_path / "model.safetensors", weights())).open()
    model = model_from(opened, Transformer, {"width": 24, "heads": 3})
    assert all(tensor.data_ptr() == opened[name].data_ptr() for name, tensor in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # The buffer that the file does not hold was computed, not left without memory.
    with torch.no_grad():
        assert torch.equal(model(noise(), torch.ones(1))[0], alone()(noise(), torch.ones(1))[0])


def test_a_buffer_that_nobody_fills_is_refused(tmp_path: Path) -> None:
    opened = SharedWeights.from_file(write_file(tmp_path / "model.safetensors", weights())).open()
    with pytest.raises(WeightsError, match="Unfilled: keeps scratch, which its constructor leaves empty"):
        model_from(opened, Unfilled, {})


@pytest.mark.parametrize(("ranks", "kind", "ulysses"), [(2, "ulysses", None), (2, "ring", None), (4, "usp", 2)])
def test_a_run_tells_all_that_a_rank_has_sent(ranks: int, kind: Kind, ulysses: int | None) -> None:
    """Also in the groups that are made of the ranks; the trial of the plan is left out."""
    arguments = {"latents": noise(16), "sigmas": [1.0, 0.5, 0.0], "inputs": {}}
    work = Workload(tokens=16, heads=3, head_dim=8, layers=2, forward_seconds=1.0, element_bytes=4)

    def rank(comm: ThreadComm) -> tuple[int, int]:
        place = WorkerContext(rank=comm.rank, size=ranks, device=torch.device("cpu"), weights=None, generation=1)
        with parallelize(alone(), PLAN, comm, kind=kind, ulysses=ulysses, canary=True) as parallel:
            built = Built(model=parallel.model, parallel=parallel)
            answers = [sample(place, built, loop=FLOW_EULER, arguments=arguments) for _ in range(2)]
        assert answers[0]["digest"] == answers[1]["digest"]
        assert all((answer["latents"] is None) == (comm.rank > 0) for answer in answers)
        return answers[0]["sent_bytes"], answers[1]["sent_bytes"]

    for place, sent in enumerate(run_threads(ranks, rank)):
        forward = forward_bytes(work, kind, ranks, ulysses=ulysses, rank=place) + joining_bytes(work, ranks, rank=place)
        assert sent == (2 * forward, 2 * forward)


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import ray_parallel", "import ray_parallel; dir(ray_parallel)"])
def test_importing_the_package_imports_neither_ray_nor_torch(code: str) -> None:
    assert {"ray", "torch", "numpy"}.isdisjoint(imported_by(code))


def test_ray_is_imported_when_a_cluster_is_needed() -> None:
    imported = imported_by("import ray_parallel.workers\nfrom ray_parallel import Runner, run")
    assert "torch" in imported
    assert "ray" not in imported


def test_public_names_are_imported_when_they_are_used() -> None:
    assert all(getattr(ray_parallel, name) is not None for name in ray_parallel.__all__)
    assert set(ray_parallel.__all__) <= set(dir(ray_parallel))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ray_parallel.nothing  # noqa: B018 (the access is the test)
