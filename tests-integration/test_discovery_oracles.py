"""Discovery on every model whose blocks are known, and traces of real forwards."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import discovery_oracles
from block_discovery import discover, trace_calls
from get_comfyui import find_comfyui
from score_discovery import Score, holds, render, score_family

# Smallest shares measured, so that a change of the cut that loses a model is seen.
NAMES_AGREE = {"comfy": 0.93, "diffusers": 0.84, "transformers": 0.90}
LIBRARIES = {"diffusers": "diffusers", "transformers": "transformers", "comfy": "einops"}

FAMILIES = [
    pytest.param("diffusers", marks=pytest.mark.slow),
    pytest.param("transformers", marks=pytest.mark.slow),
    pytest.param("comfy", marks=pytest.mark.host),
]


@cache
def scores_of(family: str) -> list[Score]:
    if family == "comfy" and find_comfyui() is None:
        pytest.skip("no ComfyUI checkout at COMFYUI_PATH or ~/.cache/torchspan/ComfyUI")
    pytest.importorskip(LIBRARIES[family])
    return score_family(family, repeats=1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_promised_shares_of_models_are_exact_and_in_reach_and_no_byte_is_missed(family: str) -> None:
    scores = scores_of(family)
    assert holds(scores, family), render(scores)
    assert sum(score.resident for score in scores) <= 0.001 * sum(score.labelled for score in scores), render(scores)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_alone_give_the_same_units(family: str) -> None:
    scores = scores_of(family)
    assert sum(score.same_from_names for score in scores) >= NAMES_AGREE[family] * len(scores), render(scores)
    nearly = [score for score in scores if score.same_bytes_from_names >= 0.95]
    assert len(nearly) >= 0.95 * len(scores), render(scores)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_are_those_that_were_labelled(family: str) -> None:
    scores = scores_of(family)
    assert [score.name for score in scores] == [oracle.name for oracle in discovery_oracles.load(family)]
    assert all(score.labelled for score in scores)


def test_the_facts_are_small_enough_for_the_repository() -> None:
    for path in Path(discovery_oracles.DATA).glob("blocks_*.json"):
        assert path.stat().st_size < 2**20


@pytest.mark.slow
def test_a_real_transformer_calls_its_units_in_the_order_that_discovery_lists_them() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=3,
        num_single_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    with torch.no_grad(), trace_calls(model, discover(model)) as trace:
        model(
            hidden_states=torch.randn(1, 16, 4),
            encoder_hidden_states=torch.randn(1, 6, 32),
            pooled_projections=torch.randn(1, 32),
            timestep=torch.tensor([0.5]),
            img_ids=torch.randn(16, 3),
            txt_ids=torch.randn(6, 3),
        )
    blocks = [f"transformer_blocks.{i}" for i in range(3)] + [f"single_transformer_blocks.{i}" for i in range(5)]
    assert [path for path in trace.calls if "blocks" in path] == blocks
    assert trace.tree == trace.given
    assert set(trace.counts.values()) == {1}


@pytest.mark.host
def test_containers_that_comfyui_bypasses_are_divided_into_what_it_calls() -> None:
    if find_comfyui() is None:
        pytest.skip("no ComfyUI checkout at COMFYUI_PATH or ~/.cache/torchspan/ComfyUI")
    unet = discovery_oracles.import_comfy("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel
    model = unet(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=[1, 1],
        channel_mult=[1, 2],
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1],
        context_dim=16,
        use_spatial_transformer=True,
        num_heads=2,
        dtype=torch.float32,
        device="cpu",
        operations=discovery_oracles.import_comfy("comfy.ops").manual_cast,
    )
    with torch.no_grad(), trace_calls(model, discover(model, max_unit_fraction=1.0)) as trace:
        model(torch.randn(1, 4, 16, 16), torch.tensor([1.0]), torch.randn(1, 5, 16))
    given = [unit.path for unit in trace.given.units]
    assert "input_blocks.1" in given
    assert "input_blocks.1" not in trace.counts
    assert {"input_blocks.1.0", "input_blocks.1.1"} <= trace.counts.keys()
    assert all(trace.counts.values())
    assert trace.tree.size_bytes == trace.given.size_bytes
