"""What would not be exact in models of diffusers is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from sequence_diffusers import flux, qwen_image, sd3
from sequence_ranks import threads
from sequence_tiny import Built

from ray_parallel.sequence import ClosedWorldError, PlanError, UncutAttentionError
from ray_parallel.sequence.plans import plan_for


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


class Unseen:
    """An attention processor whose kernel is none of torch's."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any, *options: Any) -> Any:
        return hidden_states, encoder_hidden_states


def test_an_attention_kernel_that_cannot_be_seen_is_refused() -> None:
    model, arguments = flux()
    model.transformer_blocks[1].attn.set_processor(Unseen())  # type: ignore[index, union-attr]
    with pytest.raises(UncutAttentionError, match=r"transformer_blocks\.1\.attn should attend over txt, img"):
        threads((model, arguments), plan_for(model), 2)
