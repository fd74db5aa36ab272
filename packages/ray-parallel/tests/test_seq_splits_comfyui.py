"""CFG split, data split and both with a plan, through the sampler of a ComfyUI checkout: one thread a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sequence_host
import torch
from sequence_host import host
from sequence_sampling import patcher, sample
from sequence_tiny import difference

from ray_parallel.sequence import Comm, SplitError, cfg_split, data_split, parallelize, run_threads
from ray_parallel.sequence.plans import plan_for

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING),
]
LIMIT = 4e-6
"""Three steps at cfg 5 from batches of other sizes, whose matrix products round differently; 1.3e-6 was seen."""

Put = Callable[[Any, Comm], Any]
"""put(patcher, comm) -> the patcher with wrappers on it."""


def with_cfg(model: Any, comm: Comm) -> Any:
    kind = host("comfy.patcher_extension").WrappersMP.CALC_COND_BATCH
    model.add_wrapper_with_key(kind, "split", cfg_split(comm))
    return model


def with_data(model: Any, comm: Comm) -> Any:
    kind = host("comfy.patcher_extension").WrappersMP.OUTER_SAMPLE
    model.add_wrapper_with_key(kind, "split", data_split(comm))
    return model


def ranks_agree_with_one(ranks: int, put: Put, **options: Any) -> None:
    """The host loads a model when it first samples; that happens here, one after the other."""
    models = [patcher() for _ in range(ranks)]
    reference, *_ = [sample(model, **options) for model in models]
    results = run_threads(ranks, lambda comm: sample(put(models[comm.rank].clone(), comm), **options))
    assert all(difference(out, reference) <= LIMIT for out in results)
    assert all(torch.equal(out, results[0]) for out in results)


@pytest.mark.parametrize("texts", [(7, 9), (7, 7)])
def test_cfg_split(texts: tuple[int, int]) -> None:
    ranks_agree_with_one(2, with_cfg, texts=texts)


def test_cfg_split_with_nothing_to_share_out() -> None:
    ranks_agree_with_one(2, with_cfg, cfg=1.0)


def test_cfg_split_with_idle_ranks() -> None:
    ranks_agree_with_one(3, with_cfg)


def test_cfg_split_goes_together_with_a_plan() -> None:
    def put(model: Any, comm: Comm) -> Any:
        row, column = comm.split([[0, 1], [2, 3]]), comm.split([[0, 2], [1, 3]])
        diffusion_model = model.model.diffusion_model
        parallelize(diffusion_model, plan_for(diffusion_model).plan, row)
        return with_cfg(model, column)

    ranks_agree_with_one(4, put)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_data_split(sampler: str, mask: bool) -> None:
    ranks_agree_with_one(2, with_data, batch=3, sampler=sampler, mask=mask)


def test_data_split_with_a_cfg_split_inside() -> None:
    def put(model: Any, comm: Comm) -> Any:
        row, column = comm.split([[0, 1], [2, 3]]), comm.split([[0, 2], [1, 3]])
        return with_cfg(with_data(model, column), row)

    ranks_agree_with_one(4, put, batch=3)


def test_noise_of_its_own_is_warned_of_and_differs() -> None:
    models = [patcher(), patcher()]
    reference, *_ = [sample(model, batch=2, sampler="euler_ancestral") for model in models]
    with pytest.warns(UserWarning, match="euler_ancestral may draw noise"):
        results = run_threads(
            2, lambda comm: sample(with_data(models[comm.rank].clone(), comm), batch=2, sampler="euler_ancestral")
        )
    assert difference(results[0][:1], reference[:1]) > 1e-3 or difference(results[0][1:], reference[1:]) > 1e-3


def test_one_text_a_latent_is_refused() -> None:
    models = [patcher(), patcher()]
    for model in models:
        sample(model, batch=2, conditions=2)
    with pytest.raises(SplitError, match="belongs to single latents"):
        run_threads(2, lambda comm: sample(with_data(models[comm.rank].clone(), comm), batch=2, conditions=2))
