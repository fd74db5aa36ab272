"""Every plan for ComfyUI gives what one process gives, on any number of ranks and in every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import sequence_host
import torch
from sequence_comfy_image import CASES as IMAGE_CASES
from sequence_comfy_image import flux
from sequence_comfy_video import CASES as VIDEO_CASES
from sequence_comfy_video import ltxav
from sequence_ranks import GRID, LIMIT, on_processes, on_threads, threads
from sequence_tiny import Case, first_of_each, normal

from ray_parallel.sequence import ClosedWorldError, Kind, ParallelError, UncutAttentionError
from ray_parallel.sequence.plans import ENTRIES, REFUSED, plan_for

CASES = (*IMAGE_CASES, *VIDEO_CASES)

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ulysses_gives_what_one_process_gives(case: Case, ranks: int) -> None:
    built = case.build()
    parity = on_threads(built, plan_for(built[0]), ranks)
    assert parity.difference <= LIMIT
    assert parity.alike


@pytest.mark.parametrize("case", first_of_each(CASES), ids=lambda case: case.architecture)
@pytest.mark.parametrize(("kind", "ranks"), [("ring", 3), ("all_gather", 3), ("usp", 4)])
def test_every_kind_gives_what_one_process_gives(case: Case, kind: Kind, ranks: int) -> None:
    built = case.build()
    assert on_threads(built, plan_for(built[0]), ranks, kind).difference <= LIMIT


@pytest.mark.parametrize("name", ["attn1_patch", "attn1_output_patch", "attn2_patch", "single_block", "mlp_patch"])
def test_a_patch_inside_the_blocks_is_refused_by_its_name(name: str) -> None:
    model, arguments = flux()
    arguments["transformer_options"] = {"patches": {name: [print]}}
    with pytest.raises(ClosedWorldError, match=name):
        threads((model, arguments), plan_for(model), 2)


def test_perturbed_self_attention_is_refused() -> None:
    model, arguments = ltxav()
    arguments["transformer_options"] = {"stg_self_attn_blocks": (1,)}
    with pytest.raises(UncutAttentionError, match=r"transformer_blocks\.1\.attn1"):
        threads((model, arguments), plan_for(model), 2)


def test_every_known_and_every_refused_class_is_there() -> None:
    names = [entry.model for entry in ENTRIES if entry.model.startswith("comfy.")]
    for name in [*names, *(name for name in REFUSED if name.startswith("comfy."))]:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(sequence_host.host(module), kind), torch.nn.Module)


def test_a_patch_that_replaces_blocks_is_refused() -> None:
    model, arguments = flux()
    replaced = {("double_block", 0): lambda state, more: more["original_block"](state)}
    arguments["transformer_options"] = {"patches_replace": {"dit": replaced}}
    with pytest.raises(ParallelError, match="patches_replace"):
        threads((model, arguments), plan_for(model), 2)


def test_a_residual_of_an_unknown_kind_is_refused() -> None:
    model, arguments = flux()
    arguments["control"] = {"input": [], "output": [], "middle": [normal(1, 35, 48)]}
    with pytest.raises(ClosedWorldError, match="middle"):
        threads((model, arguments), plan_for(model), 2)


@pytest.mark.slow
@cases
@pytest.mark.parametrize(("kind", "ranks"), GRID)
def test_the_whole_grid(case: Case, kind: Kind, ranks: int) -> None:
    built = case.build()
    assert on_threads(built, plan_for(built[0]), ranks, kind).difference <= LIMIT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_with_gloo_give_what_one_process_gives(tmp_path: Path) -> None:
    for (name, kind, ranks), parity in on_processes(CASES, tmp_path).items():
        assert parity.difference <= LIMIT, (name, kind, ranks)
        assert parity.alike, (name, kind, ranks)
