"""Every plan for diffusers gives what one process gives, on any number of ranks and in every kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from sequence_diffusers import CASES, flux, qwen_image, sd3
from sequence_ranks import GRID, LIMIT, on_processes, on_threads, threads
from sequence_tiny import Built, Case, first_of_each

from ray_parallel.sequence import ClosedWorldError, Kind, PlanError, UncutAttentionError
from ray_parallel.sequence.plans import ENTRIES, REFUSED, plan_for

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


@pytest.mark.parametrize(
    ("build", "option"),
    [(flux, "joint_attention_kwargs"), (sd3, "joint_attention_kwargs"), (qwen_image, "attention_kwargs")],
)
def test_options_of_the_attention_are_refused(build: Callable[[], Built], option: str) -> None:
    model, arguments = build()
    arguments[option] = {"ip_adapter_masks": torch.ones(1)}
    with pytest.raises(ClosedWorldError, match="joint_attention_kwargs"):
        threads((model, arguments), plan_for(model), 2)


def test_a_cache_that_skips_blocks_is_refused() -> None:
    model, arguments = flux()
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))  # type: ignore[operator]
    with pytest.raises(PlanError, match="disable_cache"):
        threads((model, arguments), plan_for(model), 2)


def test_every_known_and_every_refused_class_is_there() -> None:
    names = [entry.model for entry in ENTRIES if entry.model.startswith("diffusers.")]
    for name in [*names, *(name for name in REFUSED if name.startswith("diffusers."))]:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), torch.nn.Module)


class Unseen:
    """An attention processor whose kernel is none of torch's."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any, *options: Any) -> Any:
        return hidden_states, encoder_hidden_states


def test_an_attention_kernel_that_cannot_be_seen_is_refused() -> None:
    model, arguments = flux()
    model.transformer_blocks[1].attn.set_processor(Unseen())  # type: ignore[index, union-attr]
    with pytest.raises(UncutAttentionError, match=r"transformer_blocks\.1\.attn should attend over txt, img"):
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
