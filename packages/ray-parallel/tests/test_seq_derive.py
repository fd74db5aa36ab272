"""Derived plans: what is proposed is tried, what holds is written down, what cannot be trusted is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import seq_probes
import torch
from seq_core_models import IMAGE, VIDEO, Video, VideoBlock, filled, random, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence import (
    Attn,
    CanaryError,
    ChangedModelError,
    Compressed,
    Derived,
    DeriveError,
    Plan,
    PlanError,
    Probe,
    Ranges,
    Region,
    Rows,
    Seq,
    UnknownModelError,
    check_plan,
    derive_plan,
    find,
    parallelize,
    run_threads,
)
from ray_parallel.sequence.deriving._derive import proposals
from ray_parallel.sequence.deriving._planfile import verify
from ray_parallel.sequence.deriving._probe import trace


def only_region(probe: Probe) -> Region:
    region: Region
    (region,) = derive_plan(probe).entry.plan.regions
    return region


@cache
def derived_video() -> Derived:
    """The plan of the simplest model; deriving it takes its time, and it is plain data."""
    return derive_plan(seq_probes.video)


def test_one_stream_is_found_with_all_that_goes_with_it() -> None:
    region = only_region(seq_probes.video)
    assert region.args == {"x": Seq("x"), "pe": Seq("x")}
    assert region.whole == ("e", "context")
    assert region.out == Seq("x")
    assert region.attn == {"self_attn": Attn("x", "x"), "cross_attn": Attn("x")}
    assert region.scope == "list"


def test_a_row_a_frame_is_found() -> None:
    assert only_region(seq_probes.video_with_rows).args["e"] == Rows("x", 1, 3)


def test_streams_that_are_put_together_are_found_in_their_order() -> None:
    double, single = derive_plan(seq_probes.image).entry.plan.regions
    assert double.args == {"img": Seq("img"), "txt": Seq("txt"), "pe": Seq(("txt", "img"))}
    assert double.out == (Seq("img"), Seq("txt"))
    assert double.attn == {"": Attn(("txt", "img"), ("txt", "img"))}
    assert single.args == {"x": Seq("x"), "pe": Seq("x")}


def test_numbers_of_tokens_are_found_and_numbers_of_layers_left_alone() -> None:
    region = only_region(seq_probes.counting)
    assert region.args["first"] == Ranges("x")
    assert "layer" in region.whole


def test_compressed_rows_are_found_and_a_dense_mask_stays_whole() -> None:
    region = only_region(seq_probes.framed)
    assert region.args["e"] == Compressed("x")
    assert "mask" in region.whole


def test_lists_that_take_turns_are_one_region() -> None:
    region = only_region(seq_probes.alternating)
    assert region.blocks == ("even", "odd")
    assert region.exit == "odd"


def test_a_model_that_works_between_its_blocks_gets_its_tokens_whole_there() -> None:
    assert only_region(seq_probes.between).scope == "block"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_derived_plan_is_exact_at_a_length_that_was_not_tried(ranks: int) -> None:
    derived = Derived.from_json(derived_video().to_json())
    model, _ = seq_probes.video(0)
    inputs = video_inputs(tokens=53)
    with torch.no_grad():
        want = model(**inputs)

    def rank(comm: Any) -> Tensor:
        own, _ = seq_probes.video(0)
        with torch.no_grad(), parallelize(own, find(own, [derived.entry]).plan, comm):
            out: Tensor = own(**inputs)
        return out

    for out in run_threads(ranks, rank):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("branching", r"BranchingBlock.forward branches on a size: count > 1000"),
        ("mixing", "none of 2 proposals held; the first one: the parallel result differs"),
        ("unsteady", "another result each time"),
        ("linear", "no list of blocks"),
        ("nested", "tuples inside of tuples"),
    ],
)
def test_what_cannot_be_trusted_is_refused(name: str, reason: str) -> None:
    with pytest.raises(DeriveError, match=reason):
        derive_plan(getattr(seq_probes, name))


def test_a_branch_is_allowed_by_whoever_knows_it_and_written_down() -> None:
    derived = derive_plan(seq_probes.branching, allow_branches=True)
    assert derived.branches == ("BranchingBlock.forward branches on a size: count > 1000",)
    assert check_plan(derived, seq_probes.branching) <= 1e-6


def test_a_plan_file_holds_all_of_it() -> None:
    derived = derive_plan(seq_probes.image)
    text = derived.to_json()
    assert Derived.from_json(text) == derived
    data = json.loads(text)
    assert data["model"] == "seq_core_models.Image"
    assert data["blocks"] == {"double_blocks": ["img", "txt", "pe"], "single_blocks": ["x", "pe"]}
    assert data["tried"]["difference"] <= 1e-6
    assert data["tried"]["ranks"] == [2, 3]
    assert "on request only" in data["note"]


def without(key: str) -> str:
    data = json.loads(derived_video().to_json())
    del data[key]
    return json.dumps(data)


@pytest.mark.parametrize("key", ["format", "model", "blocks", "plan", "tried", "branches"])
def test_a_file_that_lacks_something_is_no_plan_file(key: str) -> None:
    with pytest.raises(PlanError, match="no plan file"):
        Derived.from_json(without(key))


@pytest.mark.parametrize("text", ["", "[]", "3", '{"format": 1', VIDEO.to_json()])
def test_other_text_is_no_plan_file(text: str) -> None:
    with pytest.raises(PlanError, match="no plan file"):
        Derived.from_json(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("difference", "small"),
        ("difference", None),
        ("difference", 10**400),
        ("ranks", 2),
        ("ranks", []),
        ("ranks", [1]),
        ("ranks", ["2"]),
    ],
)
def test_a_file_that_does_not_say_how_it_was_tried_is_no_plan_file(key: str, value: Any) -> None:
    data = json.loads(derived_video().to_json())
    data["tried"][key] = value
    with pytest.raises(PlanError, match="no plan file"):
        Derived.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", None), ("model", ["a"]), ("blocks", {"blocks": [3]}), ("blocks", {"blocks": None}), ("branches", [3])],
)
def test_a_file_whose_names_are_no_texts_is_no_plan_file(key: str, value: Any) -> None:
    data = json.loads(derived_video().to_json())
    data[key] = value
    with pytest.raises(PlanError, match="no plan file"):
        Derived.from_json(json.dumps(data))


def test_a_file_of_another_version_is_refused() -> None:
    text = derived_video().to_json().replace("derived plan 1", "derived plan 9")
    with pytest.raises(PlanError, match="derive the plan again"):
        Derived.from_json(text)


def test_a_plan_that_still_holds_passes_the_check() -> None:
    assert check_plan(derive_plan(seq_probes.image), seq_probes.image) <= 1e-6


def test_a_plan_of_another_class_fails_the_check() -> None:
    with pytest.raises(UnknownModelError):
        check_plan(derive_plan(seq_probes.image), seq_probes.video)


def test_a_block_with_another_argument_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    derived = derived_video()
    forward = VideoBlock.forward

    def with_more(self: Any, x: Any, pe: Any, e: Any, context: Any, mask: Any = None, gain: float = 1.0) -> Any:
        return forward(self, x, pe, e, context, mask)

    monkeypatch.setattr(VideoBlock, "forward", with_more)
    with pytest.raises(ChangedModelError, match="gain"):
        check_plan(derived, seq_probes.video)


def test_a_block_that_computes_something_else_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    derived = derived_video()
    forward = VideoBlock.forward

    def mixed(self: Any, x: Any, pe: Any, e: Any, context: Any, mask: Any = None) -> Any:
        return forward(self, x, pe, e, context, mask) + x.cumsum(1)

    monkeypatch.setattr(VideoBlock, "forward", mixed)
    with pytest.raises(CanaryError):
        check_plan(derived, seq_probes.video)


def test_a_new_branch_fails_the_check() -> None:
    derived = derive_plan(seq_probes.branching, allow_branches=True)
    with pytest.raises(DeriveError, match="since the plan was derived: BranchingBlock"):
        check_plan(replace(derived, branches=()), seq_probes.branching)


@pytest.mark.parametrize(("plan", "name"), [(VIDEO, "video"), (VIDEO, "video_with_rows"), (IMAGE, "image")])
def test_plans_by_hand_pass_the_same_trial(plan: Plan, name: str) -> None:
    assert verify(plan, getattr(seq_probes, name), steps=(0, 3)) <= 1e-6


def test_a_forgotten_argument_fails_the_trial() -> None:
    (region,) = VIDEO.regions
    forgetful = replace(region, args={"x": Seq("v"), "pe": Seq("v")}, whole=("context", "mask", "e"))
    with pytest.raises(Exception, match=r"differs from the single-process|size of tensor"):
        verify(Plan(regions=[forgetful]), seq_probes.video_with_rows, steps=(0,))


def test_a_value_that_comes_and_goes_is_refused() -> None:
    def probe(step: int) -> tuple[nn.Module, Mapping[str, Any]]:
        model, arguments = seq_probes.video(step)
        return model, {**arguments, "mask": torch.ones(1, 1, 1, arguments["x"].shape[1]) if step else None}

    with pytest.raises(DeriveError, match="mask is given at some steps only"):
        proposals([trace(*probe(step)) for step in (0, 1, 2)])


@pytest.mark.slow
def test_a_model_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    derived = derive_plan(seq_probes.diffusers_flux)
    assert derived.difference <= 1e-6
    assert derived.entry.model == "diffusers.models.transformers.transformer_flux.FluxTransformer2DModel"
    assert [region.blocks for region in derived.entry.plan.regions] == [
        ("transformer_blocks",),
        ("single_transformer_blocks",),
    ]
    assert check_plan(Derived.from_json(derived.to_json()), seq_probes.diffusers_flux) <= 1e-6


def test_a_trial_leaves_model_and_arguments_as_they_are() -> None:
    model, kept = filled(Video()), random(1, 11, 24)
    verify(VIDEO, lambda step: (copy.deepcopy(model), {**video_inputs(tokens=11), "x": kept}), steps=(0,))
    assert torch.equal(kept, random(1, 11, 24))
