"""`ray_parallel.run` with real workers: the latents of one process, from one copy of the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_fixtures import cluster
from runner_models import FORGETFUL, MISNAMED, NEARSIGHTED, PLAN, alone, noise, weights
from shared_examples import write_file

from ray_parallel import Runner, flow_euler, run
from ray_parallel.sequence import Plan
from ray_parallel.workers import (
    Cluster,
    GroupOptions,
    InvalidRequestError,
    Progress,
    RanksDisagreeError,
    RunRefusedError,
    WeightsError,
    WorkerDiedError,
)

__all__ = ["cluster"]

pytestmark = pytest.mark.slow

MODEL = "runner_models:Transformer"
OPTIONS = GroupOptions(step_seconds=60)
LOOP: dict[str, Any] = {"latents": noise(), "sigmas": [1.0, 0.75, 0.5, 0.25, 0.0], "inputs": {}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("model") / "model.safetensors", weights())


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    with torch.no_grad():
        return flow_euler(alone(), lambda *_: None, **LOOP)


@pytest.fixture(scope="module")
def runner(cluster: Cluster, file: Path) -> Iterator[Runner]:
    with Runner(MODEL, weights=file, plan=PLAN, options=OPTIONS, cluster=cluster) as ready:
        yield ready


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_two_workers_give_the_latents_of_one_process(runner: Runner, expected: torch.Tensor) -> None:
    steps: list[Progress] = []
    result = runner.run(on_step=steps.append, previews=True, **LOOP)
    assert error(result.latents, expected) <= 1e-6
    assert [step.done for step in steps] == [1, 2, 3, 4]
    assert torch.equal(steps[-1].preview, result.latents)
    assert result.seconds > 0
    assert len(result.sent_bytes) == 2
    assert min(result.sent_bytes) > 0


def test_the_weights_are_there_once(runner: Runner) -> None:
    report = runner.sharing()
    assert report.mode == "file"
    assert report.copies == pytest.approx(1.0, abs=0.3)
    assert sum(share.own_bytes for share in report.shares) == 0


def test_again_gives_the_same_bits(runner: Runner) -> None:
    assert torch.equal(runner.run(**LOOP).latents, runner.run(**LOOP).latents)


def test_a_killed_worker_is_told_and_the_next_run_succeeds(
    runner: Runner, expected: torch.Tensor, tmp_path: Path
) -> None:
    killing: dict[str, Any] = {"latents": noise(), "flag": str(tmp_path / "killed")}
    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match="worker 1 died"):
        runner.run(loop="runner_models:killing_loop", **killing)
    assert time.monotonic() - began < 30
    assert error(runner.run(**LOOP).latents, expected) <= 1e-6
    assert runner.run(loop="runner_models:killing_loop", **killing).latents.shape == noise().shape


def test_workers_that_disagree_give_no_result(runner: Runner) -> None:
    with pytest.raises(RanksDisagreeError, match="worker 1 came to another result than worker 0, so none is given"):
        runner.run(loop="runner_models:drifting_loop", latents=noise())


def test_another_kind_of_exchange(cluster: Cluster, file: Path, expected: torch.Tensor) -> None:
    result = run(MODEL, weights=file, plan=PLAN, kind="ring", options=OPTIONS, cluster=cluster, **LOOP)
    assert error(result.latents, expected) <= 1e-6


def test_tensors_without_a_file(cluster: Cluster, expected: torch.Tensor) -> None:
    with Runner(MODEL, weights=weights(), plan=PLAN, options=OPTIONS, cluster=cluster) as from_tensors:
        assert error(from_tensors.run(**LOOP).latents, expected) <= 1e-6
        assert from_tensors.sharing().mode == "store"
    assert cluster.room.taken_bytes == 0


def test_one_worker_needs_no_plan(cluster: Cluster, file: Path, expected: torch.Tensor) -> None:
    result = run(MODEL, weights=file, options=GroupOptions(workers=1), cluster=cluster, **LOOP)
    assert torch.equal(result.latents, expected)
    assert result.sent_bytes == (0,)


@pytest.mark.parametrize(
    ("plan", "kind", "reason"),
    [
        (FORGETFUL, "ray_parallel.sequence.plan._errors.ClosedWorldError", "shift"),
        (MISNAMED, "ray_parallel.sequence.plan._errors.PlanError", "layers"),
        (NEARSIGHTED, "ray_parallel.sequence.running._canary.CanaryError", "differs"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(cluster: Cluster, file: Path, plan: Plan, kind: str, reason: str) -> None:
    with pytest.raises(RunRefusedError, match=reason) as refused:
        run(MODEL, weights=file, plan=plan, options=OPTIONS, cluster=cluster, **LOOP)
    assert refused.value.kind == kind


def test_a_plan_that_is_not_tried_is_taken_at_its_word(cluster: Cluster, file: Path, expected: torch.Tensor) -> None:
    result = run(MODEL, weights=file, plan=NEARSIGHTED, canary=False, options=OPTIONS, cluster=cluster, **LOOP)
    assert error(result.latents, expected) > 1e-3


def test_what_is_wrong_from_the_start_is_refused_before_a_worker_starts(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="model 'Transformer' names no function"):
        Runner("Transformer", weights=tmp_path / "none.safetensors", cluster=cluster)
    with pytest.raises(FileNotFoundError):
        Runner(MODEL, weights=tmp_path / "none.safetensors", cluster=cluster)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(WeightsError, match="this is no safetensors file"):
        Runner(MODEL, weights=tmp_path / "text.safetensors", cluster=cluster)


def test_a_loop_gets_plain_data_only(runner: Runner) -> None:
    with pytest.raises(InvalidRequestError, match="only plain data and tensors travel"):
        runner.run(latents=noise(), sigmas=[1.0, 0.0], inputs={"hook": print})
