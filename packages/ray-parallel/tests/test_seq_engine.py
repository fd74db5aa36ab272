"""A plan on a model gives what the model gives alone, and leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from seq_core_models import IMAGE, VIDEO, Image, Video, filled, image_inputs, random, video_inputs
from seq_probes import Alternating
from torch import Tensor, nn

from ray_parallel.sequence import (
    Attn,
    ClosedWorldError,
    Control,
    Kind,
    Layout,
    Mesh,
    Plan,
    PlanError,
    PreflightError,
    Rows,
    Seq,
    ThreadComm,
    UncutAttentionError,
    parallelize,
    run_threads,
)
from ray_parallel.sequence.running._catch import Caught
from ray_parallel.sequence.running._rules import Forward, Frame, run_rule

KINDS: tuple[Kind, ...] = get_args(Kind)
Build = Callable[[], nn.Module]


def video() -> nn.Module:
    return filled(Video())


def image() -> nn.Module:
    return filled(Image())


def run(build: Build, plan: Plan, inputs: dict[str, Any], ranks: int, kind: Kind = "ulysses", **more: Any) -> list[Any]:
    """What each rank gets; every rank has its own model and its own inputs."""
    ulysses = (2 if ranks % 2 == 0 else 1) if kind == "usp" else None

    def rank(comm: ThreadComm) -> Any:
        model = build()
        with torch.no_grad(), parallelize(model, plan, comm, kind=kind, ulysses=ulysses, **more):
            out = model(**copy.deepcopy(inputs))
        assert not hooks_of(model)
        return out

    return run_threads(ranks, rank, timeout_s=20)


def hooks_of(model: nn.Module) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for table in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called)
        for hook in table
    ]


def modes() -> list[Any]:
    """The function modes that are entered in this thread."""
    stack: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return stack


def same(outs: list[Tensor], want: Tensor) -> None:
    for out in outs:
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
        assert torch.equal(out, outs[0])


def alone(build: Build, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = build()(**copy.deepcopy(inputs))
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 13])
def test_one_stream(kind: Kind, ranks: int, rows: int) -> None:
    inputs = video_inputs(rows=rows, mask=rows == 1, batch=2)
    same(run(video, VIDEO, inputs, ranks, kind), alone(video, inputs))


@pytest.mark.parametrize("tokens", [12, 6, 3, 1])
def test_frames_stay_together_and_short_streams_stay_whole(tokens: int) -> None:
    inputs = video_inputs(tokens=tokens, rows=3 if tokens > 1 else 1)
    same(run(video, VIDEO, inputs, 2), alone(video, inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("txt", [1, 5])
@pytest.mark.parametrize("control", [False, True])
def test_two_streams_then_one(kind: Kind, ranks: int, txt: int, control: bool) -> None:
    inputs = image_inputs(txt=txt, control=control)
    same(run(image, IMAGE, inputs, ranks, kind), alone(image, inputs))


@pytest.mark.parametrize("ranks", [2, 3])
def test_scope_block_gives_the_same(ranks: int) -> None:
    regions = [replace(region, scope="block", exit="last") for region in (*IMAGE.regions,)]
    inputs = image_inputs(control=True)
    same(run(image, replace(IMAGE, regions=regions), inputs, ranks), alone(image, inputs))


def test_a_stream_kept_whole_on_request() -> None:
    inputs = image_inputs(txt=5)
    same(run(image, IMAGE, inputs, 2, "ring", whole=["txt"]), alone(image, inputs))


def test_inputs_of_the_caller_are_not_written_to() -> None:
    inputs = image_inputs()
    before = copy.deepcopy(inputs)

    def rank(comm: ThreadComm) -> None:
        model = filled(Image())
        with torch.no_grad(), parallelize(model, IMAGE, comm):
            model(**inputs)

    run_threads(2, rank)
    for name in ("img", "txt", "pe"):
        assert torch.equal(inputs[name], before[name])


def test_several_forwards_with_other_lengths() -> None:
    cases = [video_inputs(tokens=tokens) for tokens in (13, 8, 13)]

    def rank(comm: ThreadComm) -> list[Tensor]:
        model = video()
        with torch.no_grad(), parallelize(model, VIDEO, comm):
            return [model(**case) for case in cases]

    for place, case in enumerate(cases):
        same([outs[place] for outs in run_threads(2, rank)], alone(video, case))


@pytest.mark.parametrize("forgotten", ["pe", "e", "context", "mask"])
def test_every_forgotten_argument_raises(forgotten: str) -> None:
    (region,) = VIDEO.regions
    args = {name: spec for name, spec in region.args.items() if name != forgotten}
    whole = tuple(name for name in region.whole if name != forgotten)
    plan = Plan(regions=[replace(region, args=args, whole=whole)])
    with pytest.raises(ClosedWorldError, match=forgotten) as caught:
        run(video, plan, video_inputs(mask=True), 2)
    assert caught.value.arguments == (forgotten,)


def test_attention_without_a_rule_raises() -> None:
    (region,) = VIDEO.regions
    plan = Plan(regions=[replace(region, attn={"self_attn": Attn("v", "v")})])
    with pytest.raises(UncutAttentionError, match=r"blocks\.0.*no rule"):
        run(video, plan, video_inputs(), 2)


def test_attention_that_cannot_be_seen_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_hand(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    monkeypatch.setattr("seq_core_models.Attention.attend", by_hand)
    with pytest.raises(UncutAttentionError, match=r"blocks\.0\.self_attn.*no attention was seen"):
        run(video, VIDEO, video_inputs(), 2)


@pytest.mark.parametrize(("option", "reason"), [({"is_causal": True}, "causal"), ({"dropout_p": 0.5}, "dropout")])
def test_attention_that_cannot_be_cut_raises(
    option: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **option)

    monkeypatch.setattr("seq_core_models.Attention.attend", attend)
    with pytest.raises(UncutAttentionError, match=reason):
        run(video, VIDEO, video_inputs(), 2)


def test_gradients_are_refused() -> None:
    def rank(comm: ThreadComm) -> None:
        model = filled(Video()).requires_grad_()
        with torch.enable_grad(), parallelize(model, VIDEO, comm):
            model(**video_inputs())

    with pytest.raises(UncutAttentionError, match="gradients"):
        run_threads(2, rank, timeout_s=5)


def test_a_rule_that_does_not_fit_raises() -> None:
    (region,) = VIDEO.regions
    plan = Plan(regions=[replace(region, attn={**region.attn, "cross_attn": Attn("v", "v")})])
    with pytest.raises(PlanError, match=r"5 keys.*does not fit"):
        run(video, plan, video_inputs(), 2)


@pytest.mark.parametrize("shape", [(13,), (1, 13, 13, 1, 1)])
def test_a_mask_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    def rank(comm: ThreadComm) -> None:
        caught = Caught(q=random(1, 13, 3, 8), k=random(1, 13, 3, 8), v=random(1, 13, 3, 8), mask=torch.zeros(shape),
                        scale=None, kernel=lambda q, k, v, mask: q)  # fmt: skip
        layout = Layout.of({"v": 13}, ranks=1, rank=0)
        forward = Forward(region=VIDEO.regions[0], layout=layout, frames=[Frame("blocks.0", Attn("v", "v"))])
        with pytest.raises(PlanError, match=r"a mask of shape .* give it 2 or 4 dimensions"):
            run_rule(forward, Mesh.of(comm), {}, caught)

    run_threads(1, rank)


def test_an_exit_that_is_never_reached_raises() -> None:
    class Skips(Video):
        def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
            out: Tensor = self.blocks[0](x, pe, e, context, mask)
            return out

    (region,) = VIDEO.regions
    with pytest.raises(PlanError, match="never joined"):
        run(lambda: filled(Skips()), Plan(regions=[replace(region, exit="last")]), video_inputs(), 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: inputs.update(x=random(1, 14, 24), pe=random(1, 14, 1, 8)),
        lambda inputs: inputs.update(x=inputs["x"].double()),
        lambda inputs: inputs.update(mask=random(1, 1, 13, 13)),
    ],
)
def test_ranks_that_disagree_all_raise_at_once(change: Callable[[dict[str, Any]], None]) -> None:
    def rank(comm: ThreadComm) -> str:
        inputs = video_inputs()
        if comm.rank == 2:
            change(inputs)
        model = filled(Video())
        with torch.no_grad(), parallelize(model, VIDEO, comm), pytest.raises(PreflightError) as caught:
            model(**inputs)
        assert caught.value.ranks == (2,)
        with torch.no_grad(), parallelize(model, VIDEO, comm):
            model(**video_inputs())
        return "still usable"

    assert run_threads(3, rank, timeout_s=5) == ["still usable"] * 3


def test_ranks_with_different_plans_raise() -> None:
    (region,) = VIDEO.regions
    other = Plan(regions=[replace(region, args={**region.args, "e": Rows("v", ndim=3)})])

    def rank(comm: ThreadComm) -> tuple[int, ...]:
        model = filled(Video())
        with parallelize(model, other if comm.rank else VIDEO, comm), pytest.raises(PreflightError) as caught:
            model(**video_inputs())
        return caught.value.ranks

    assert run_threads(3, rank, timeout_s=5) == [(0,)] * 3


def test_a_block_that_is_called_by_itself_runs_as_it_is() -> None:
    def rank(comm: ThreadComm) -> int:
        model, inputs = filled(Video()), video_inputs()
        tokens = [inputs.pop("x"), inputs.pop("pe")]
        with torch.no_grad():
            want = model.blocks[0](*tokens, **inputs)  # type: ignore[index, operator]
            with parallelize(model, VIDEO, comm):
                got = model.blocks[0](*tokens, **inputs)  # type: ignore[index, operator]
                assert model.head(got).shape == got.shape  # type: ignore[operator]
        assert torch.equal(got, want)
        return comm.traffic.total_bytes

    assert run_threads(2, rank, timeout_s=20) == [0, 0]


def test_regions_that_take_turns_are_refused() -> None:
    """Their blocks run one after the other, so the streams of one are cut when the other begins."""
    (region,) = VIDEO.regions
    halves = [replace(region, blocks=name, exit="last") for name in ("even", "odd")]
    inputs = {name: value for name, value in video_inputs().items() if name != "mask"}
    with pytest.raises(PlanError, match=r"odd\.0 starts a region before that of even has ended"):
        run(lambda: filled(Alternating()), Plan(regions=halves), inputs, 2)


def test_a_model_is_never_left_hooked_after_an_error() -> None:
    class Fails(Video):
        def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
            super().forward(x, pe, e, context, mask)
            raise ZeroDivisionError

    def rank(comm: ThreadComm) -> Any:
        model = filled(Fails())
        with pytest.raises(ZeroDivisionError), torch.no_grad(), parallelize(model, VIDEO, comm):
            model(**video_inputs())
        assert not hooks_of(model)
        return modes()

    assert run_threads(2, rank) == [[], []]


def test_an_error_inside_a_block_leaves_no_mode_and_the_handle_works_on() -> None:
    def rank(comm: ThreadComm) -> Tensor:
        model = filled(Video())
        with torch.no_grad(), parallelize(model, VIDEO, comm):
            with pytest.raises(RuntimeError, match="shape"):
                model(**{**video_inputs(), "context": random(1, 5, 7)})
            assert modes() == []
            out: Tensor = model(**video_inputs())
        return out

    same(run_threads(2, rank, timeout_s=5), alone(video, video_inputs()))


def test_a_rank_that_raises_wakes_the_others() -> None:
    def rank(comm: ThreadComm) -> None:
        model = filled(Video())
        if comm.rank == 1:
            model.get_submodule("blocks.1").register_forward_pre_hook(lambda *_: 1 / 0)
        with torch.no_grad(), parallelize(model, VIDEO, comm):
            model(**video_inputs())

    with pytest.raises(ZeroDivisionError):
        run_threads(3, rank, timeout_s=20)


def test_remove_twice_is_fine_and_other_hooks_stay() -> None:
    model = filled(Video())
    model.register_forward_hook(lambda *_: None)

    def rank(comm: ThreadComm) -> None:
        handle = parallelize(model, VIDEO, comm)
        assert len(hooks_of(model)) > 10
        handle.remove()
        handle.remove()

    run_threads(1, rank)
    assert len(hooks_of(model)) == 1


(REGION,) = VIDEO.regions


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan(regions=[replace(REGION, blocks="layers")]), "no module 'layers'"),
        (Plan(regions=[replace(REGION, attn={"attention": Attn("v", "v")})]), "no block of blocks"),
        (Plan(regions=[replace(REGION, exit=("tail", "x"))]), "no module 'tail'"),
        (Plan(regions=[replace(REGION, exit=("head", "y"))]), "no argument 'y'"),
        (Plan(regions=[replace(REGION, exit="layers")]), "not one of the lists"),
        (replace(VIDEO, control=[Control(key="k", blocks="layers", stream="v")]), "in no region"),
    ],
)
def test_a_plan_for_another_model_sets_no_hook(plan: Plan, reason: str) -> None:
    model = filled(Video())
    with pytest.raises(PlanError, match=reason):
        run_threads(1, lambda comm: parallelize(model, plan, comm))
    assert not hooks_of(model)


def test_an_error_while_hooks_are_set_takes_off_those_that_were() -> None:
    class Unhookable(nn.Linear):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no hooks here")

    model = Video()
    last = model.blocks[-1]
    last.cross_attn = Unhookable(1, 1)
    with pytest.raises(RuntimeError, match="no hooks here"):
        run_threads(1, lambda comm: parallelize(model, VIDEO, comm))
    assert not hooks_of(model)


def test_a_stream_without_a_length_raises() -> None:
    plan = Plan(
        regions=[replace(REGION, args={**REGION.args, "context": Seq("txt"), "mask": Rows("nowhere")}, whole=())]
    )
    with pytest.raises(PlanError, match="how long stream 'nowhere' is"):
        run(video, plan, video_inputs(mask=True), 2)


def test_a_mask_built_from_cut_parts_is_put_together() -> None:
    plan = Plan(regions=[replace(REGION, args={**REGION.args, "mask": Seq("v", 3)}, whole="context")])
    for tokens in (3, 13):  # with 3 tokens one of the ranks holds a mask of size 1
        inputs = video_inputs(tokens=tokens)
        inputs["mask"] = random(1, 1, 1, tokens) > -1
        inputs["mask"][..., 0] = True
        same(run(video, plan, inputs, 2), alone(video, inputs))
