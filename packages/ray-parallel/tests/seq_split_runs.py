"""What the tests of splits over gloo processes run on each rank."""

from __future__ import annotations

from typing import Any

import torch
from seq_core_models import VIDEO, Video, filled, random, video_inputs
from torch import Tensor

from ray_parallel.sequence import Comm, batch_split, cfg_split, parallelize

ROWS, WHOLE = ("x", "e", "context"), ("pe", "mask")


def conditions_and_tokens(comm: Comm) -> None:
    """Four processes: two conditions times two shares of the tokens; then two conditions on four, of which two idle."""
    row, column = comm.split([[0, 1], [2, 3]]), comm.split([[0, 2], [1, 3]])
    texts: list[Any] = [[random(1, 5, 24, seed=5)], [random(1, 9, 24, seed=9)]]
    x, time = random(1, 13, 24), torch.ones(1)
    want = evaluate(filled(Video()), texts, x, time, {})
    model = filled(Video())
    with parallelize(model, VIDEO, row):
        both = cfg_split(column)(evaluate, model, texts, x, time, {})
    idle = cfg_split(comm)(evaluate, filled(Video()), texts, x, time, {})
    for got in (both, idle):
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * theirs.abs().max().item())


def rows(comm: Comm) -> None:
    """A batch with more rows than processes, and one with fewer."""
    for batch in (5, 2):
        inputs = {**video_inputs(batch=batch), "context": random(batch, 5, 24, seed=4)}
        model = filled(Video())
        with torch.no_grad():
            want = model(**inputs)
            with batch_split(model, comm, rows=ROWS, whole=WHOLE):
                out = model(**inputs)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())


def evaluate(model: Any, texts: list[Any], x: Tensor, time: Tensor, options: Any) -> list[Tensor]:
    """The part of a host that a CFG split wraps."""
    with torch.no_grad():
        return [
            torch.zeros_like(x)
            if listed is None
            else model(**{**video_inputs(tokens=x.shape[1]), "x": x, "context": listed[0]})
            for listed in texts
        ]
