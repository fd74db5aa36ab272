"""The ways to a model's attention: ComfyUI's override, with what was there before, and its patches between blocks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from seq_core_models import DIM, VIDEO, Attention, Video, filled, heads_of, random, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence import (
    Attn,
    ClosedWorldError,
    Opaque,
    Plan,
    PlanError,
    Seq,
    ThreadComm,
    injection,
    parallelize,
    run_threads,
)

(REGION,) = VIDEO.regions


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """By hand, so that nothing but the override can catch it."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    out: Tensor = (scores if mask is None else scores + mask).softmax(-1) @ v
    return out


def hosted(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **options: Any) -> Tensor:
    """An attention function in the manner of the host: asks the override first, takes [B, S, H * D] or [B, H, S, D]."""
    override = (options.get("transformer_options") or {}).get("optimized_attention_override")
    if override is not None and "_inside" not in options:
        out: Tensor = override(hosted, q, k, v, heads, mask=mask, **options, _inside=True)
        return out
    if not options.get("skip_reshape"):
        q, k, v = (heads_of(t, heads).transpose(1, 2) for t in (q, k, v))
    out = softmax_attention(q, k, v, mask[:, None] if mask is not None and mask.ndim == 3 else mask)
    return out if options.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


class Guide:
    """A mask object: a weight on the second half of the keys, for the first half of the queries."""

    def __init__(self, bias: float) -> None:
        self.bias = bias

    def dense(self, q: int, k: int) -> Tensor:
        mask = torch.zeros(1, 1, q, k)
        mask[..., : q // 2, k // 2 :] = self.bias
        return mask


class HostBlock(nn.Module):
    """Attention by hand-written softmax, reachable through the override only."""

    def __init__(self, heads: int, skip: bool) -> None:
        super().__init__()
        self.attn, self.skip = Attention(heads), skip

    def forward(self, x: Tensor, mask: Any = None, transformer_options: dict[str, Any] | None = None) -> Tensor:
        q, k, v = self.attn.q(x), self.attn.k(x), self.attn.v(x)
        heads = self.attn.heads
        forms: dict[str, Any] = {"skip_reshape": True, "skip_output_reshape": True} if self.skip else {}
        if self.skip:
            q, k, v = (heads_of(t, heads).transpose(1, 2) for t in (q, k, v))
        if isinstance(mask, Guide):
            mask = mask.dense(x.shape[1], x.shape[1])
        out = hosted(q, k, v, heads, mask=mask, transformer_options=transformer_options, **forms)
        projected: Tensor = self.attn.out(out.transpose(1, 2).flatten(2) if self.skip else out)
        return x + projected


class Host(nn.Module):
    """A diffusion model in the manner of ComfyUI, with a patch point between the blocks."""

    def __init__(self, heads: int = 3, skip: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(HostBlock(heads, skip) for _ in range(3))

    def forward(
        self, x: Tensor, mask: Any = None, transformer_options: dict[str, Any] | None = None, **rest: Any
    ) -> Any:
        options = transformer_options or {}
        replaced = options.get("patches_replace", {}).get("dit", {})
        for place, block in enumerate(self.blocks):
            if place in replaced:
                x = replaced[place](x, lambda y, b=block: b(y, mask, transformer_options=options))
            else:
                x = block(x, mask, transformer_options=options)
            for patch in options.get("patches", {}).get("double_block", []):
                x = patch({"img": x, "place": place})["img"]
        return x


PLAN = Plan(
    regions=[
        Region := replace(REGION, args={"x": Seq("v")}, whole="mask", attn={"": Attn("v", "v")}, exit="last"),
    ]
)
BLOCKWISE = Plan(regions=[replace(Region, scope="block")])


def run(
    plan: Plan, ranks: int = 3, *, skip: bool = False, kind: Any = "ulysses", kernels: Any = None, **call: Any
) -> list[Any]:
    def rank(comm: ThreadComm) -> Any:
        model = filled(Host(skip=skip))
        with torch.no_grad(), parallelize(model, plan, comm, kind=kind, kernels=kernels):
            return model(random(2, 11, DIM), **call)

    return run_threads(ranks, rank, timeout_s=10)


def alone(*, skip: bool = False, **call: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = filled(Host(skip=skip))(random(2, 11, DIM), **call)
    return out


def same(outs: list[Tensor], want: Tensor) -> None:
    for out in outs:
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
        assert torch.equal(out, outs[0])


@pytest.mark.parametrize("kind", ["ulysses", "ring", "all_gather"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [None, (11, 11), (2, 11, 11), (1, 1, 11, 11), (2, 3, 11, 11)])
def test_attention_that_only_the_override_reaches(kind: str, skip: bool, shape: tuple[int, ...] | None) -> None:
    mask = None if shape is None else random(*shape)
    same(run(PLAN, skip=skip, kind=kind, mask=mask), alone(skip=skip, mask=mask))


def test_a_kernel_that_ends_in_torchs_attention_is_not_caught_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.softmax_attention", torch.nn.functional.scaled_dot_product_attention)
    mask = random(1, 1, 11, 11)
    same(run(PLAN, mask=mask), alone(mask=mask))


def earlier(log: list[tuple[int, ...]]) -> Any:
    """An override that was installed before: doubles the result, so that leaving it out shows."""

    def override(function: Any, *args: Any, **options: Any) -> Tensor:
        log.append(tuple(args[0].shape))
        out: Tensor = function(*args, **options) * 2
        return out

    return override


def test_an_earlier_override_is_called_for_whole_sequences() -> None:
    log: list[tuple[int, ...]] = []
    options = {"optimized_attention_override": earlier(log)}
    want = alone(transformer_options=options)
    log.clear()
    same(run(PLAN, 3, transformer_options=options), want)
    assert set(log) == {(2, 1, 11, DIM // 3)}, "every rank shows it its head over all tokens"
    assert len(log) == 3 * 3


@pytest.mark.parametrize("kind", ["ring", "all_gather"])
def test_kinds_that_would_show_it_parts_refuse(kind: str) -> None:
    with pytest.raises(PlanError, match="use kind 'ulysses'"):
        run(PLAN, kind=kind, transformer_options={"optimized_attention_override": earlier([])})


def test_options_of_the_caller_stay_as_they_are() -> None:
    options: dict[str, Any] = {"patches": {"double_block": []}, "sigmas": torch.ones(1)}
    before = copy.copy(options)
    run(PLAN, 1, transformer_options=options)
    assert options == before


def mixing(values: dict[str, Any]) -> dict[str, Any]:
    """A patch that depends on the order of all tokens."""
    return {"img": values["img"] + 0.3 * values["img"].roll(5, 1) * values["img"].mean(1, keepdim=True)}


@pytest.mark.parametrize("plan", [PLAN, BLOCKWISE])
def test_patches_between_blocks_see_whole_tensors(plan: Plan) -> None:
    options = {"patches": {"double_block": [mixing]}}
    listed = replace(plan, patches={"double_block": {"img": Seq("v")}})
    same(run(listed, transformer_options=options), alone(transformer_options=options))


def test_patches_that_the_plan_does_not_know_are_refused() -> None:
    with pytest.raises(ClosedWorldError, match=r"patches\['double_block'\]"):
        run(PLAN, transformer_options={"patches": {"double_block": [mixing]}})


def test_a_replaced_block_is_for_scope_block_only() -> None:
    options = {"patches_replace": {"dit": {2: lambda x, block: block(x.flip(1)) + x.mean(1, keepdim=True)}}}
    same(run(BLOCKWISE, transformer_options=options), alone(transformer_options=options))
    with pytest.raises(ClosedWorldError, match="patches_replace"):
        run(PLAN, transformer_options=options)


def guided(mask: Guide, q: Tensor, k: Tensor, v: Tensor, attend: Any) -> Tensor:
    out: Tensor = attend(q, k, v, mask.dense(q.shape[2], k.shape[2]))
    return out


@pytest.mark.parametrize("kind", ["ulysses", "ring", "all_gather"])
def test_a_mask_object_is_applied_to_whole_sequences(kind: str) -> None:
    plan = Plan(regions=[replace(Region, args={"x": Seq("v"), "mask": Opaque("guide")}, whole=())])
    mask = Guide(-2.0)
    same(run(plan, kind=kind, kernels={"guide": guided}, mask=mask), alone(mask=mask))


def test_a_mask_object_without_its_kernel_is_refused() -> None:
    plan = Plan(regions=[replace(Region, args={"x": Seq("v"), "mask": Opaque("guide")}, whole=())])
    with pytest.raises(PlanError, match="mask kernel 'guide'"):
        run(plan, mask=Guide(1.0))


def test_a_mask_object_on_cut_queries_over_whole_keys_is_refused() -> None:
    rule = {"": Attn("v", ())}
    plan = Plan(regions=[replace(Region, args={"x": Seq("v"), "mask": Opaque("guide")}, whole=(), attn=rule)])
    with pytest.raises(PlanError, match="whole queries"):
        run(plan, kernels={"guide": guided}, mask=Guide(1.0))


def test_control_that_the_plan_does_not_know_is_refused() -> None:
    with pytest.raises(ClosedWorldError, match=r"control\['middle'\]"):
        run(PLAN, control={"middle": [torch.ones(1, 11, DIM)]})
    same(run(PLAN, control={"middle": [None]}), alone())


class Injection:
    """Stands for the host's class of the same form."""

    def __init__(self, inject: Any, eject: Any) -> None:
        self.inject, self.eject = inject, eject


class Patcher:
    def __init__(self, model: nn.Module) -> None:
        self.model = nn.Module()
        self.model.diffusion_model = model


def test_an_injection_installs_and_removes_with_the_hosts_clones() -> None:
    model = filled(Video())
    inputs, block = video_inputs(), model.get_submodule("blocks.0")

    def rank(comm: ThreadComm) -> None:
        entry = injection(Injection, lambda diffusion_model: parallelize(diffusion_model, VIDEO, comm))
        patcher, clone = Patcher(model), Patcher(model)
        for one in (patcher, clone):
            entry.inject(one)
            assert block._forward_pre_hooks
            with torch.no_grad():
                model(**inputs)
            entry.eject(one)
            entry.eject(one)
            assert not block._forward_pre_hooks

    run_threads(1, rank)
