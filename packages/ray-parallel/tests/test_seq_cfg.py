"""CFG split and batch split: every rank gets what one process computes, whatever is shared out; or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from seq_core_models import VIDEO, Video, filled, random, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence import (
    ClosedWorldError,
    Comm,
    PreflightError,
    SplitError,
    ThreadComm,
    batch_split,
    cfg_split,
    parallelize,
    run_threads,
)

Conditions = list[list[Tensor] | None]


class Host:
    """Evaluates condition lists as a sampler does: zeros for None, the mean of several texts of one list."""

    def __init__(self) -> None:
        self.model = filled(Video())
        self.evaluated = 0

    def __call__(self, model: Any, conditions: Conditions, x: Tensor, timestep: Tensor, options: Any) -> list[Tensor]:
        return [torch.zeros_like(x) if texts is None else self.mean(texts, x) for texts in conditions]

    def mean(self, texts: list[Tensor], x: Tensor) -> Tensor:
        self.evaluated += len(texts)
        inputs = video_inputs(tokens=x.shape[1])
        with torch.no_grad():
            return torch.stack([self.model(**{**inputs, "x": x, "context": text}) for text in texts]).mean(0)


def call(host: Host, wrapper: Callable[..., Any], conditions: Conditions, tokens: int = 13, **options: Any) -> Any:
    return wrapper(host, None, conditions, random(1, tokens, 24), torch.ones(1), options)


def text(length: int) -> Tensor:
    return random(1, length, 24, seed=length)


CONDITIONS: dict[str, Conditions] = {
    "texts of different lengths": [[text(5)], [text(9)]],
    "cfg 1": [[text(5)], None],
    "several texts a list": [[text(5), text(3)], [text(9)]],
    "three lists": [[text(5)], [text(9)], [text(2)]],
    "the first one is left out": [None, [text(9)], [text(2)]],
    "nothing at all": [None, None],
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CONDITIONS)
def test_every_rank_gets_every_result(name: str, ranks: int) -> None:
    conditions = CONDITIONS[name]
    want = Host()(None, conditions, random(1, 13, 24), torch.ones(1), {})
    for out in run_threads(ranks, lambda comm: call(Host(), cfg_split(comm), conditions)):
        assert len(out) == len(want)
        assert all(map(torch.equal, out, want))


def test_each_text_is_evaluated_once() -> None:
    def rank(comm: ThreadComm) -> int:
        host = Host()
        call(host, cfg_split(comm), CONDITIONS["texts of different lengths"])
        return host.evaluated

    assert run_threads(2, rank) == [1, 1]
    assert run_threads(4, rank) == [1, 1, 0, 0]


def test_it_sends_its_own_results_once() -> None:
    def rank(comm: ThreadComm) -> int:
        call(Host(), cfg_split(comm), CONDITIONS["three lists"])
        return comm.traffic.total_bytes

    one = 13 * 24 * 4
    assert run_threads(2, rank) == [2 * one, one]


@pytest.mark.parametrize("lengths", [(5, 9), (9, 5), (1, 2)])
def test_it_goes_together_with_a_plan(lengths: tuple[int, int]) -> None:
    conditions: Conditions = [[text(length)] for length in lengths]
    want = Host()(None, conditions, random(1, 13, 24), torch.ones(1), {})

    def rank(comm: ThreadComm) -> list[Tensor]:
        row, column = comm.split([[0, 1], [2, 3]]), comm.split([[0, 2], [1, 3]])
        host = Host()
        with parallelize(host.model, VIDEO, row):
            out: list[Tensor] = call(host, cfg_split(column), conditions)
        assert host.evaluated == 1
        return out

    results = run_threads(4, rank)
    for out in results:
        for ours, theirs, first in zip(out, want, results[0], strict=True):
            assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
            assert torch.equal(ours, first)


def test_the_hosts_own_split_is_refused() -> None:
    with pytest.raises(SplitError, match="multigpu node"):
        run_threads(2, lambda comm: call(Host(), cfg_split(comm), [[text(5)], None], multigpu_clones={"cuda:1": 1}))


def test_an_empty_table_of_clones_is_no_split() -> None:
    out = run_threads(2, lambda comm: call(Host(), cfg_split(comm), [[text(5)], [text(5)]], multigpu_clones={}))
    assert torch.equal(out[0][0], out[1][0])


@pytest.mark.parametrize("differs", ["tokens", "conditions"])
def test_ranks_that_mean_different_things_are_stopped(differs: str) -> None:
    def rank(comm: ThreadComm) -> None:
        odd = comm.rank == 2
        conditions: Conditions = [[text(5)], [text(5)], [text(5)] if odd and differs == "conditions" else None]
        with pytest.raises(PreflightError) as caught:
            call(Host(), cfg_split(comm), conditions, tokens=14 if odd and differs == "tokens" else 13)
        assert caught.value.ranks == (2,)

    run_threads(3, rank)


def test_the_comparison_can_be_left_out() -> None:
    def rank(comm: ThreadComm) -> int:
        call(Host(), cfg_split(comm, check_ranks=False), [[text(5)], [text(5)]])
        return comm.traffic.calls.total()

    assert run_threads(2, rank) == [1, 1]


ROWS = ("x", "e", "context")
WHOLE = ("pe", "mask")


def batched(batch: int) -> dict[str, Any]:
    return {**video_inputs(batch=batch), "context": random(batch, 5, 24, seed=4)}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_rows_are_shared_out(batch: int, ranks: int) -> None:
    with torch.no_grad():
        want = filled(Video())(**batched(batch))

    def rank(comm: ThreadComm) -> tuple[Tensor, Tensor]:
        model = filled(Video())
        with torch.no_grad():
            with batch_split(model, comm, rows=ROWS, whole=WHOLE):
                split: Tensor = model(**batched(batch))
            return split, model(**batched(batch))

    results = run_threads(ranks, rank)
    for split, after in results:
        torch.testing.assert_close(split, want, rtol=0, atol=1e-6 * want.abs().max().item())
        assert torch.equal(split, results[0][0])
        assert torch.equal(after, want)


def test_rows_go_together_with_a_plan() -> None:
    with torch.no_grad():
        want = filled(Video())(**batched(2))

    def rank(comm: ThreadComm) -> Tensor:
        row, column = comm.split([[0, 1], [2, 3]]), comm.split([[0, 2], [1, 3]])
        model = filled(Video())
        with torch.no_grad(), parallelize(model, VIDEO, row), batch_split(model, column, rows=ROWS, whole=WHOLE):
            out: Tensor = model(**batched(2))
        return out

    for out in run_threads(4, rank):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())


@dataclass
class Sample(dict[str, Tensor]):
    """Like the output classes of diffusers: a mapping that is built by keywords."""

    sample: Tensor

    def __post_init__(self) -> None:
        self["sample"] = self.sample


class Returning(nn.Module):
    """Returns its input in any form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Any, flag: bool = True) -> Any:
        return self.form(x)


def through(form: Callable[[Tensor], Any], x: Any, **more: Any) -> list[Any]:
    def rank(comm: Comm) -> Any:
        model = Returning(form)
        with batch_split(model, comm, rows="x", whole="flag"):
            return model(x, **more)

    return run_threads(2, rank)


def test_results_come_in_every_form() -> None:
    x = random(3, 4)
    assert all(torch.equal(out[0], x) for out in through(lambda x: (x,), x))
    assert all(torch.equal(out[1], x) for out in through(lambda x: [2 * x, x], x, flag=False))
    for out in through(Sample, x):
        assert isinstance(out, Sample)
        assert torch.equal(out.sample, x)
    assert all(torch.equal(out, x + 1) for out in through(lambda pair: pair[0] + pair[1], (x, torch.ones(1, 4))))


@pytest.mark.parametrize(
    ("form", "x", "reason"),
    [
        (lambda x: x.sum(), torch.ones(4, 2), "have no rows"),
        (lambda x: x.new_ones(3, 1), torch.ones(4, 2), "2 rows went in"),
        (lambda x: "text", torch.ones(4, 2), "a str cannot be put together"),
        (lambda x: x[0], (torch.ones(4, 2), torch.ones(3, 2)), r"\[3, 4\] rows"),
        (lambda x: x, 3, "a int has no rows"),
    ],
)
def test_what_has_no_rows_is_refused(form: Callable[[Any], Any], x: Any, reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        through(form, x)


def test_an_argument_that_is_not_listed_is_refused() -> None:
    def rank(comm: Comm) -> None:
        model = filled(Video())
        with batch_split(model, comm, rows=("x", "e"), whole=("pe", "mask")):
            model(**batched(2))

    with pytest.raises(ClosedWorldError) as caught:
        run_threads(2, rank)
    assert caught.value.arguments == ("context",)


def test_nothing_is_left_on_the_model_after_an_error() -> None:
    model = Returning(lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_threads(1, lambda comm: _run(model, comm))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def _run(model: nn.Module, comm: Comm) -> None:
    with batch_split(model, comm, rows="x"):
        model(torch.ones(2, 2))
