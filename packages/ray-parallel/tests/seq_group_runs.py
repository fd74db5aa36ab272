"""What the tests of plans over gloo processes run on each rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from seq_core_models import IMAGE, VIDEO, Image, Video, filled, image_inputs, video_inputs
from torch import nn

from ray_parallel.sequence import Comm, Kind, Mesh, Plan, PreflightError, parallelize


def every_kind_is_exact(comm: Comm) -> None:
    """Both models, every kind, uneven shards, residuals; all ranks hold the same bits."""
    cases: list[tuple[Callable[[], nn.Module], Plan, Callable[[], dict[str, Any]]]] = [
        (Video, VIDEO, lambda: video_inputs(rows=3, mask=True)),
        (Image, IMAGE, lambda: image_inputs(txt=1, control=True)),
    ]
    for build, plan, inputs in cases:
        with torch.no_grad():
            want = filled(build())(**inputs())
            for kind in get_args(Kind):
                model = filled(build())
                mesh = Mesh.of(comm, kind, 2 if kind == "usp" else None)
                with parallelize(model, plan, mesh):
                    out = model(**inputs())
                torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
                bits = out.contiguous().view(torch.uint8).flatten()
                assert all(torch.equal(other, bits) for other in comm.all_gather(bits, [bits.numel()] * comm.size))


def a_mismatch_stops_all_and_breaks_nothing(comm: Comm) -> None:
    """Another length on one rank: an error on every rank, and the group still works."""
    model = filled(Video())
    with torch.no_grad(), parallelize(model, VIDEO, comm):
        for _ in range(2):
            with pytest.raises(PreflightError) as caught:
                model(**video_inputs(tokens=14 if comm.rank == 1 else 13))
            assert caught.value.ranks == (1,)
            model(**video_inputs())


def half_precision_stays_close(comm: Comm) -> None:
    """bf16 travels as it is; the result differs by rounding only."""
    inputs = {name: None if value is None else value.bfloat16() for name, value in video_inputs().items()}
    with torch.no_grad():
        want = filled(Video()).bfloat16()(**inputs)
        model = filled(Video()).bfloat16()
        with parallelize(model, VIDEO, comm):
            out = model(**inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, want, rtol=0, atol=2e-2 * want.abs().max().item())
