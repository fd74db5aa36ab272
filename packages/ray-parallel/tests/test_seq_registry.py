"""Unknown and changed models are refused; a wrong plan is found by the canary before it is used."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from seq_core_models import IMAGE, VIDEO, Image, Video, VideoBlock, filled, image_inputs, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence import (
    Attn,
    CanaryError,
    ChangedModelError,
    Entry,
    Kind,
    Mesh,
    Plan,
    PlanError,
    Rows,
    Seq,
    ThreadComm,
    UnknownModelError,
    canary,
    find,
    name_of,
    parallelize,
    run_threads,
    signature_of,
)

(REGION,) = VIDEO.regions
VIDEO_ENTRY = Entry(model="seq_core_models.Video", plan=VIDEO, blocks={"blocks": ("x", "pe", "e", "context", "mask")})
IMAGE_ENTRY = Entry(
    model="seq_core_models.Image",
    plan=IMAGE,
    blocks={"double_blocks": ("img", "txt", "pe"), "single_blocks": ("x", "pe")},
)


def test_a_known_model_finds_its_plan() -> None:
    assert find(Video(), [IMAGE_ENTRY, VIDEO_ENTRY]) is VIDEO_ENTRY
    assert find(Image(), [IMAGE_ENTRY, VIDEO_ENTRY]) is IMAGE_ENTRY


@pytest.mark.parametrize(("model", "entry"), [(Video(), VIDEO_ENTRY), (Image(), IMAGE_ENTRY)])
def test_entries_are_written_from_what_the_model_says(model: nn.Module, entry: Entry) -> None:
    assert (name_of(model), signature_of(model, entry.plan)) == (entry.model, entry.blocks)


def test_an_unknown_model_is_refused_even_when_its_base_is_known() -> None:
    class Derived(Video):
        pass

    with pytest.raises(UnknownModelError, match=r"Derived; known are: .*Image, .*Video") as caught:
        find(Derived(), [IMAGE_ENTRY, VIDEO_ENTRY])
    assert caught.value.model.endswith("Derived")


class ChangedBlock(VideoBlock):
    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, gate: Any = None, **more: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, pe, e, context)


def test_a_changed_model_is_refused_with_what_changed() -> None:
    model = Video()
    model.blocks = nn.ModuleList(ChangedBlock(3) for _ in range(2))
    with pytest.raises(ChangedModelError, match=r"take \(x, pe, e, context, gate, \*\*more\) instead of") as caught:
        find(model, [VIDEO_ENTRY])
    assert len(caught.value.differences) == 1
    newer = replace(VIDEO_ENTRY, blocks={"blocks": ("x", "pe", "e", "context", "gate", "**more")})
    assert find(model, [VIDEO_ENTRY, newer]) is newer


def test_a_list_that_is_gone_or_of_two_kinds_is_a_change() -> None:
    model = Video()
    model.blocks = nn.ModuleList([VideoBlock(3), ChangedBlock(3)])
    with pytest.raises(ChangedModelError, match="take different arguments"):
        find(model, [VIDEO_ENTRY])
    model.blocks = nn.ModuleList()
    with pytest.raises(ChangedModelError, match="empty list"):
        find(model, [VIDEO_ENTRY])


def try_out(plan: Plan, build: Any = Video, inputs: Any = video_inputs, ranks: int = 2, **options: Any) -> list[float]:
    def rank(comm: ThreadComm) -> float:
        model = filled(build()).to(torch.bfloat16)
        before = copy.deepcopy(model.state_dict())
        try:
            return canary(model, plan, Mesh.of(comm), lambda small: small(**inputs()), **options)
        finally:
            assert not model._forward_pre_hooks
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    return run_threads(ranks, rank, timeout_s=10)


@pytest.mark.parametrize(("plan", "build", "inputs"), [(VIDEO, Video, video_inputs), (IMAGE, Image, image_inputs)])
@pytest.mark.parametrize("depth", [1, 2, None])
def test_a_right_plan_passes_in_fp32_whatever_the_model_is(plan: Plan, build: Any, inputs: Any, depth: Any) -> None:
    errors = try_out(plan, build, inputs, depth=depth)
    assert max(errors) <= 1e-6
    assert len(set(errors)) == 1


WRONG = {
    "keys thought whole": replace(REGION, attn={**REGION.attn, "self_attn": Attn("v")}),
    "positions not cut as they lie": replace(
        REGION, args={"x": Seq("v"), "e": Rows("v")}, whole=("context", "mask", "pe")
    ),
}


def test_keys_that_are_wrongly_thought_whole_are_found() -> None:
    with pytest.raises(CanaryError) as caught:
        try_out(Plan(regions=[WRONG["keys thought whole"]]))
    assert caught.value.error > 1e-3


def test_streams_in_the_wrong_order_are_found() -> None:
    double, single = IMAGE.regions
    swapped = replace(double, args={**double.args, "pe": Seq(("img", "txt"))})
    with pytest.raises(CanaryError) as caught:
        try_out(replace(IMAGE, regions=[swapped, single]), Image, image_inputs)
    assert caught.value.error > 1e-3


def test_every_rank_comes_to_the_same_verdict_on_numbers_that_are_none() -> None:
    def rank(comm: ThreadComm) -> float:
        model = filled(Video())
        inputs = video_inputs()
        inputs["e"] = inputs["e"] * float("nan")
        with pytest.raises(CanaryError) as caught:
            canary(model, VIDEO, Mesh.of(comm), lambda small: small(**inputs))
        return caught.value.error

    assert run_threads(2, rank) == [float("inf")] * 2


def test_a_call_that_returns_no_tensor() -> None:
    with pytest.raises(PlanError, match="returned no tensor"):
        run_threads(1, lambda comm: canary(filled(Video()), VIDEO, Mesh.of(comm), lambda small: {"x": [None]}))


def test_parallelize_tries_the_plan_first_and_sets_no_hook_when_it_is_wrong() -> None:
    plan = Plan(regions=[WRONG["keys thought whole"]])

    def rank(comm: ThreadComm) -> bool:
        model = filled(Video())
        with pytest.raises(CanaryError):
            parallelize(model, plan, comm, canary=lambda small: small(**video_inputs()))
        assert not any(module._forward_pre_hooks for module in model.modules())
        with torch.no_grad(), parallelize(model, VIDEO, comm, canary=lambda small: small(**video_inputs())):
            return bool(model(**video_inputs()).isfinite().all())

    assert run_threads(2, rank) == [True, True]


def test_the_trial_keeps_whole_what_the_model_will_keep_whole() -> None:
    def rank(comm: ThreadComm) -> int:
        model = filled(Video())
        with parallelize(model, VIDEO, comm, whole=("v",), canary=lambda small: small(**video_inputs())) as parallel:
            return parallel.mesh.sent_bytes

    assert run_threads(2, rank) == [0, 0]


@pytest.mark.parametrize(("ranks", "kind", "ulysses"), [(2, "ulysses", None), (4, "usp", 2)])
def test_the_first_call_can_be_the_trial(ranks: int, kind: Kind, ulysses: int | None) -> None:
    def rank(comm: ThreadComm) -> tuple[int, int, int]:
        model, inputs = filled(Video()).to(torch.bfloat16), video_inputs()
        lower = {name: value.to(torch.bfloat16) if torch.is_tensor(value) else value for name, value in inputs.items()}
        options: dict[str, Any] = {"kind": kind, "ulysses": ulysses, "canary": True}
        with torch.no_grad(), parallelize(model, VIDEO, comm, **options) as parallel:
            first = model(**lower)
            sent = parallel.mesh.sent_bytes
            assert torch.equal(model(**lower), first)
            return sent, parallel.trial_bytes, parallel.mesh.sent_bytes - sent

    for first, trial, second in run_threads(ranks, rank):
        assert trial > 0
        assert first == trial + second, "the trial is made once, and counted by itself"


def test_a_plan_that_fails_at_the_first_call_never_gives_a_result() -> None:
    plan = Plan(regions=[WRONG["keys thought whole"]])

    def rank(comm: ThreadComm) -> bool:
        model = filled(Video())
        with torch.no_grad(), parallelize(model, plan, comm, canary=True):
            for _ in range(2):
                with pytest.raises(CanaryError):
                    model(**video_inputs())
        return not any(module._forward_pre_hooks for module in model.modules())

    assert run_threads(2, rank) == [True, True]


def test_the_trial_leaves_the_inputs_as_they_are() -> None:
    def rank(comm: ThreadComm) -> bool:
        inputs = video_inputs()
        before = copy.deepcopy(inputs)
        with torch.no_grad(), parallelize(filled(Video()), VIDEO, comm, canary=True) as parallel:
            parallel.model(**inputs)
        return all(torch.equal(value, before[name]) for name, value in inputs.items() if torch.is_tensor(value))

    assert run_threads(2, rank) == [True, True]
