"""Timestep embeddings of a rank: put side by side they are the whole again, whatever is cut where."""

from __future__ import annotations

from typing import Any

import pytest
import sequence_host
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seq_core_models import random
from seq_probes import PerFrame

from ray_parallel.sequence import PlanError, process_usp_timestep

Kind = type[Any]


def host_kind() -> Kind:
    kind: Kind = sequence_host.host("comfy.ldm.lightricks.av_model").CompressedTimestep
    return kind


def parts_of(value: Any, tokens: int, ranks: int, unit: int = 1) -> list[Any]:
    return [process_usp_timestep(value, tokens=tokens, ranks=ranks, rank=rank, unit=unit) for rank in range(ranks)]


def check_every_cut(kind: Kind, most_frames: int) -> int:
    """All cuts of small videos: nothing lost, doubled, copied or expanded. Returns how many there were."""
    table, count = random(3, 2, seed=5), 0
    for frames in range(1, most_frames + 1):
        for per_frame in range(1, 8):
            whole = kind(random(2, frames, 6), per_frame, per_frame=True)
            tokens = frames * per_frame
            for ranks in range(1, min(6, tokens + 1)):
                for unit in {1, per_frame} if frames >= ranks else {1}:
                    parts = parts_of(whole, tokens, ranks, unit)
                    assert torch.equal(torch.cat([part.expand() for part in parts], 1), whole.expand())
                    for indices in (slice(None), slice(0, 2), slice(2, 3)):
                        values = zip(*(part.expand_for_computation(table, 2, indices) for part in parts), strict=True)
                        want = whole.expand_for_computation(table, 2, indices)
                        assert all(map(torch.equal, (torch.cat(value, 1) for value in values), want))
                    for part in parts:
                        assert isinstance(part, kind)
                        assert part.data.untyped_storage().data_ptr() == whole.data.untyped_storage().data_ptr()
                        assert part.data.shape[1] == part.num_frames <= tokens // ranks // per_frame + 2
                    count += 1
    return count


def test_every_cut_of_an_object_with_one_row_a_frame_is_exact() -> None:
    assert check_every_cut(PerFrame, 7) > 300


@pytest.mark.host
@pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING)
def test_every_cut_of_the_hosts_object_is_exact() -> None:
    assert check_every_cut(host_kind(), 7) > 300


@pytest.mark.host
@pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING)
def test_the_hosts_object_made_from_tokens_is_cut_the_same() -> None:
    rows = random(1, 5, 4).repeat_interleave(6, 1)
    whole = host_kind()(rows, 6)
    assert whole.num_frames == 5
    assert torch.equal(torch.cat([part.expand() for part in parts_of(whole, 30, 4)], 1), rows)


def test_a_large_video_keeps_its_few_rows() -> None:
    """768 x 512, 121 frames: 16 latent frames of 384 tokens, six parameters of 4096 numbers a row."""
    whole = PerFrame(torch.zeros(1, 16, 6 * 4096, dtype=torch.bfloat16), 384)
    kept = [part.data.numel() * 2 for part in parts_of(whole, 16 * 384, 3)]
    assert kept == [6 * 6 * 4096 * 2] * 3
    assert sum(kept) < 2 * whole.data.numel() * 2 < 16 * 384 * 6 * 4096 * 2 / 100


@settings(max_examples=200, deadline=None)
@given(frames=st.integers(1, 9), per_frame=st.integers(1, 9), ranks=st.integers(1, 6), data=st.data())
def test_tensors_with_a_row_a_token_or_a_frame_are_cut(
    frames: int, per_frame: int, ranks: int, data: st.DataObject
) -> None:
    tokens = frames * per_frame
    per_token = data.draw(st.booleans())
    unit = data.draw(st.sampled_from([1, per_frame]))
    rows = random(2, tokens if per_token else frames, 4)
    expanded = rows if per_token else rows.repeat_interleave(per_frame, 1)
    parts = parts_of(rows, tokens, ranks, unit)
    if ranks == 1:
        assert parts[0] is rows
    elif tokens // unit < ranks:
        assert all(part is rows for part in parts)
    elif rows.shape[1] > 1:
        held = [
            len(process_usp_timestep(torch.ones(1, tokens), tokens=tokens, ranks=ranks, rank=rank, unit=unit)[0])
            for rank in range(ranks)
        ]
        assert sum(held) == tokens
        grown = [part.repeat_interleave(count // part.shape[1], 1) for part, count in zip(parts, held, strict=True)]
        assert torch.equal(torch.cat(grown, 1), expanded)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_one_row_counts_for_every_rank(ranks: int) -> None:
    row = random(2, 1, 6)
    assert all(part is row for part in parts_of(row, 30, ranks))
    one_frame = PerFrame(row, 1)
    assert all(part is one_frame for part in parts_of(one_frame, 30, ranks))


def test_a_timestep_without_rows_counts_for_every_rank() -> None:
    number = torch.tensor([0.5])
    assert all(part is number for part in parts_of(number, 30, 3))
    assert parts_of(None, 30, 3) == [None] * 3


def test_containers_keep_their_form() -> None:
    rows, frames = random(1, 12, 2), PerFrame(random(1, 4, 2), 3)
    part = process_usp_timestep([rows, (frames, None), {"audio": rows[:, :1]}], tokens=12, ranks=3, rank=1)
    assert torch.equal(part[0], rows[:, 4:8])
    assert isinstance(part[1], tuple)
    assert torch.equal(part[1][0].expand(), frames.expand()[:, 4:8])
    assert part[1][1] is None
    assert torch.equal(part[2]["audio"], rows[:, :1])


@pytest.mark.parametrize(
    ("value", "options", "reason"),
    [
        (random(1, 31, 2), {}, "neither the whole"),
        (PerFrame(random(1, 4, 2), 7), {}, "4 frames of 7 tokens do not describe 30 tokens"),
        ("text", {}, "a str has no rows"),
        (random(1, 30, 2), {"unit": 7}, "2 are left over"),
        (random(1, 30, 2), {"rank": 3}, "no rank 3 among 3"),
        (random(1, 30, 2), {"rank": -1}, "no rank -1 among 3"),
    ],
)
def test_what_does_not_fit_is_refused(value: Any, options: dict[str, int], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        process_usp_timestep(value, **{"tokens": 30, "ranks": 3, "rank": 0} | options)
