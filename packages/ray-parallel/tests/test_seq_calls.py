"""Calls that real models make and toys do not: starred arguments, two attentions, residuals between the blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from seq_core_models import filled, random
from torch import Tensor, nn
from torch.nn import functional

from ray_parallel.sequence import Attn, Grid, Plan, PlanError, Region, Seq, ThreadComm, parallelize, run_threads
from ray_parallel.sequence.running._catch import override

JOINT = ("txt", "img")


def attend(q: Tensor, k: Tensor) -> Tensor:
    """Two heads over [B, S, 8]."""
    queries, keys = (t.view(*t.shape[:2], 2, -1).transpose(1, 2) for t in (q, k))
    return functional.scaled_dot_product_attention(queries, keys, keys).transpose(1, 2).flatten(2)


class TwiceBlock(nn.Module):
    """Attends over text and image, then over the image alone; opaque to a reader of its signature."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, *args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        txt, img = args
        joint = torch.cat((txt, img), 1)
        out = attend(self.mix(joint), joint)
        return txt + out[:, : txt.shape[1]], img + out[:, txt.shape[1] :] + attend(img, kwargs["gain"] * img)


class Twice(nn.Module):
    """Adds residuals between its blocks by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TwiceBlock(), TwiceBlock()])

    def forward(self, txt: Tensor, img: Tensor, residuals: list[Tensor] | None = None) -> Tensor:
        for place, block in enumerate(self.blocks):
            txt, img = block(txt, img, gain=1.5)
            if residuals is not None:
                img = img + residuals[place]
        return torch.cat((txt, img), 1)


REGION = Region(
    blocks="blocks",
    args={"*args": (Seq("txt"), Seq("img"))},
    whole="gain",
    out=(Seq("txt"), Seq("img")),
    attn={"": Attn(JOINT, JOINT, other=Attn("img", "img"))},
)
PLAN = Plan(regions=[REGION], inputs={"residuals": Seq("img")})


def run(plan: Plan, ranks: int, inputs: dict[str, Any]) -> list[Tensor]:
    def rank(comm: ThreadComm) -> Tensor:
        model = filled(Twice())
        with torch.no_grad(), parallelize(model, plan, comm):
            out: Tensor = model(**inputs)
        return out

    return run_threads(ranks, rank, timeout_s=20)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("txt", [1, 5])
def test_two_attentions_and_residuals_give_what_one_process_gives(ranks: int, txt: int) -> None:
    residuals = [random(1, 11, 8, seed=seed) for seed in (5, 6)]
    inputs = {"txt": random(1, txt, 8), "img": random(1, 11, 8), "residuals": residuals}
    kept = [residual.clone() for residual in residuals]
    with torch.no_grad():
        want = filled(Twice())(**inputs)
    for out in run(PLAN, ranks, inputs):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
    assert all(map(torch.equal, residuals, kept))


def test_residuals_that_the_plan_does_not_know_raise() -> None:
    inputs = {"txt": random(1, 5, 8), "img": random(1, 11, 8), "residuals": [random(1, 11, 8)] * 2}
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(Plan(regions=[REGION]), 2, inputs)


def test_a_second_attention_without_a_rule_of_its_own_raises() -> None:
    region = replace(REGION, attn={"": Attn(JOINT, JOINT)})
    inputs = {"txt": random(1, 5, 8), "img": random(1, 11, 8)}
    with pytest.raises(PlanError, match=r"5 queries over 5 keys|6 queries over 6 keys"):
        run(Plan(regions=[region]), 2, inputs)


def test_rules_that_both_fit_raise() -> None:
    backwards = Attn(JOINT[::-1], JOINT[::-1], other=Attn("img", "img"))
    region = replace(REGION, attn={"": Attn(JOINT, JOINT, other=backwards)})
    with pytest.raises(PlanError, match="it does not fit"):
        run(Plan(regions=[region]), 2, {"txt": random(1, 5, 8), "img": random(1, 11, 8)})


def test_a_rule_over_a_stream_without_a_length_raises() -> None:
    rules = {"": Attn(JOINT, JOINT, other=Attn("video", "video"))}
    region = replace(REGION, args={**REGION.args, "frames": Seq("video")}, attn=rules)
    with pytest.raises(PlanError, match="how long stream 'video' is"):
        run(Plan(regions=[region]), 2, {"txt": random(1, 5, 8), "img": random(1, 11, 8)})


def test_a_plan_with_other_rules_and_inputs_survives_json() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_values_with_their_heads_apart_are_understood() -> None:
    q, k, v = (random(1, 5, 8, seed=seed) for seed in (1, 2, 3))
    seen: list[torch.Size] = []

    def look(caught: Any) -> None:
        seen.extend((caught.q.shape, caught.k.shape, caught.v.shape))

    called = override(look, None)(lambda *args, **options: "plain", q, k, v.view(1, 5, 2, 4), 2)
    assert called == "plain"
    assert seen == [torch.Size((1, 5, 2, 4))] * 3


class GridBlock(nn.Module):
    """Hidden states [B, T, H, W, C] all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        tokens = x.flatten(1, 3) + places
        return x + attend(self.mix(tokens), tokens).view_as(x)


class GridModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([GridBlock(), GridBlock()])

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, places)
        return x


GRID = Region(
    blocks="blocks",
    args={"x": Grid("v"), "places": Seq("v")},
    out=Grid("v"),
    attn={"": Attn("v", "v")},
)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(("frames", "lines"), [(1, 5), (1, 3), (1, 1), (2, 1), (3, 5), (4, 3)])
def test_grids_are_cut_between_frames_and_images_between_lines(frames: int, lines: int, ranks: int) -> None:
    x, places = random(1, frames, lines, 3, 8), random(1, frames * lines * 3, 8)
    with torch.no_grad():
        want = filled(GridModel())(x, places)
    held: list[int] = []

    def rank(comm: ThreadComm) -> Tensor:
        model = filled(GridModel())
        model.get_submodule("blocks.1").register_forward_pre_hook(lambda _, args: held.append(args[0].numel()))
        with torch.no_grad(), parallelize(model, Plan(regions=[GRID]), comm):
            out: Tensor = model(x, places)
        return out

    for out in run_threads(ranks, rank, timeout_s=20):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
    units = frames if frames > 1 else lines
    assert sum(held) == x.numel() * (1 if units >= ranks else ranks)
