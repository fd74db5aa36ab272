"""What would not be exact in ComfyUI's models is refused by its name."""

from __future__ import annotations

import pytest
import sequence_host
from sequence_comfy_image import flux
from sequence_comfy_video import ltxav
from sequence_ranks import threads
from sequence_tiny import normal

from ray_parallel.sequence import ClosedWorldError, ParallelError, UncutAttentionError
from ray_parallel.sequence.plans import plan_for

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING),
]


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
