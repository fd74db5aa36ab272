"""What a careless engine gets wrong: tensors written to between blocks, other exits, nothing to cut, nobody checks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from seq_core_models import DIM, IMAGE, VIDEO, Image, Video, VideoBlock, filled, image_inputs, random, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence import (
    ClosedWorldError,
    CommError,
    Mesh,
    Plan,
    Seq,
    ThreadComm,
    parallelize,
    run_threads,
)

(REGION,) = VIDEO.regions
ENDS_AT_LIST = Plan(regions=[replace(REGION, exit="blocks")])


def check(build: Callable[[], nn.Module], plan: Plan, inputs: dict[str, Any], ranks: int = 2, **options: Any) -> None:
    """Every rank gets what the model gives alone."""

    def rank(comm: ThreadComm) -> Tensor:
        model = filled(build())
        with torch.no_grad(), parallelize(model, plan, comm, **options):
            out: Tensor = model(**copy.deepcopy(inputs))
        return out

    with torch.no_grad():
        want = filled(build())(**copy.deepcopy(inputs))
    for out in run_threads(ranks, rank, timeout_s=20):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())


class WritesBetween(Video):
    """Changes positions in place from block to block: the object stays, its content does not."""

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        pe = pe.clone()
        for block in self.blocks:
            x = block(x, pe, e=e, context=context, mask=mask)
            pe += 0.3
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("scope", ["list", "block"])
def test_what_is_written_between_blocks_is_cut_anew(scope: Any) -> None:
    check(WritesBetween, Plan(regions=[replace(REGION, scope=scope)]), video_inputs())


class Interleaved(nn.Module):
    """Two lists that take turns, the shorter one every second time; the streams end with the longer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VideoBlock(3) for _ in range(4))
        self.hints = nn.ModuleList(VideoBlock(3) for _ in range(2))

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        hint = x
        for place, block in enumerate(self.blocks):
            x = block(x, pe, e, context, mask)
            if place % 2 == 0:
                hint = self.hints[place // 2](hint, pe, e, context)
                x = x + hint * 0.5
        return x


def test_two_lists_that_take_turns() -> None:
    plan = Plan(regions=[replace(REGION, blocks=("blocks", "hints"), exit="blocks")])
    check(Interleaved, plan, video_inputs(), ranks=3)


def test_an_exit_at_the_end_of_a_list_and_one_before_a_module_are_the_same() -> None:
    check(Video, ENDS_AT_LIST, video_inputs())


def test_a_prompt_without_tokens() -> None:
    inputs = image_inputs(txt=0)
    check(Image, IMAGE, inputs, ranks=3)


def test_fewer_tokens_than_ranks_means_nothing_is_said() -> None:
    def rank(comm: ThreadComm) -> int:
        model = filled(Video())
        mesh = Mesh.of(comm)
        with torch.no_grad(), parallelize(model, VIDEO, mesh):
            model(**video_inputs(tokens=3))
        return mesh.sent_bytes

    assert run_threads(4, rank) == [0] * 4


def test_one_mesh_for_several_models() -> None:
    def rank(comm: ThreadComm) -> None:
        mesh = Mesh.of(comm, "usp", 2)
        video, image = parallelize(filled(Video()), VIDEO, mesh), parallelize(filled(Image()), IMAGE, mesh)
        with torch.no_grad(), video, image:
            first, second = video.model(**video_inputs()), image.model(**image_inputs())
        torch.testing.assert_close(first, filled(Video())(**video_inputs()), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second, filled(Image())(**image_inputs()), rtol=1e-5, atol=1e-5)

    run_threads(4, rank)


def test_without_preflight_a_mismatch_is_still_an_error() -> None:
    def rank(comm: ThreadComm) -> None:
        model = filled(Video())
        with torch.no_grad(), parallelize(model, VIDEO, comm, preflight=False):
            model(**video_inputs(tokens=13 + comm.rank))

    with pytest.raises(CommError, match="expected"):
        run_threads(2, rank, timeout_s=5)


def test_bytes_of_a_forward_are_those_of_its_layers() -> None:
    tokens, ranks, depth = 24, 2, 3

    def rank(comm: ThreadComm) -> int:
        mesh = Mesh.of(comm)
        model = filled(Video(heads=2, depth=depth))
        inputs = video_inputs(tokens=tokens) | {"pe": random(1, tokens, 1, DIM // 2)}
        with torch.no_grad(), parallelize(model, VIDEO, mesh):
            model(**inputs)
        return mesh.sent_bytes

    layer = 4 * tokens * DIM * (ranks - 1) // ranks**2 * 4
    joined = tokens // ranks * DIM * 4 * (ranks - 1)
    assert run_threads(ranks, rank) == [depth * layer + joined] * ranks


class Lists(nn.Module):
    """Blocks that pass their streams on as a list, and take one more argument only at times."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ListBlock() for _ in range(2))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        streams = [x[:, :4], x[:, 4:]]
        for block in self.blocks:
            streams = block(streams, gate) if gate is not None else block(streams)
        return torch.cat(streams, 1)


class ListBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, streams: list[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        x = torch.cat(streams, 1)[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(self.linear(x), x, x)[:, 0]
        out = out if gate is None else out * gate
        return list(torch.split(out, [part.shape[1] for part in streams], 1))


def lists_plan(**more: Any) -> Plan:
    both = (Seq("a"), Seq("b"))
    entries: dict[str, Any] = {"args": {"streams": both}, "out": both, "exit": "last", "whole": (), **more}
    rule = replace(REGION.attn["self_attn"], q=("a", "b"), kv=("a", "b"))
    return Plan(regions=[replace(REGION, attn={"": rule}, **entries)])


def test_streams_in_a_list_stay_a_list() -> None:
    check(Lists, lists_plan(), {"x": random(1, 15, DIM)}, ranks=3)


def test_an_argument_that_comes_only_at_times_must_still_be_known() -> None:
    inputs = {"x": random(1, 15, DIM), "gate": random(1, 1, DIM)}
    check(Lists, lists_plan(whole="gate"), inputs)
    with pytest.raises(ClosedWorldError, match="gate"):
        check(Lists, lists_plan(), inputs)


def compiled(model: nn.Module, way: str) -> nn.Module:
    """The model, or each of its blocks, through torch.compile in one of the ways that people use."""
    compile_: Any = partial(torch.compile, backend="eager")
    if way == "model":
        whole: nn.Module = compile_(model)
        return whole
    blocks: Any = model.get_submodule("blocks")
    for place, block in enumerate(blocks):
        if way == "blocks in place":
            block.compile(backend="eager")
        elif way == "blocks replaced":
            blocks[place] = compile_(block)
        else:
            block.self_attn = compile_(block.self_attn)
    return model


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.parametrize(
    "way",
    ["blocks replaced"]
    + [pytest.param(way, marks=pytest.mark.slow) for way in ("model", "blocks in place", "attention replaced")],
)
def test_compiled_modules_are_looked_through(way: str) -> None:
    """Compiled code that has run without hooks would leave them out, and a wrapper takes arguments of any name."""

    def rank(comm: ThreadComm) -> Tensor:
        model = compiled(filled(Video()), way)
        with torch.no_grad():
            alone = model(**video_inputs())
            with parallelize(model, VIDEO, comm) as handle:
                out: Tensor = model(**video_inputs())
                assert handle.mesh.sent_bytes
            torch.testing.assert_close(model(**video_inputs()), alone)
        return out

    with torch.no_grad():
        want = filled(Video())(**video_inputs())
    for out in run_threads(2, rank, timeout_s=60):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
