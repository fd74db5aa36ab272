"""Every kind of attention equals the attention of one process, whatever the lengths, heads, masks and ranks."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_parallel.sequence import Layout, PlanError, ThreadComm, run_threads
from ray_parallel.sequence.ranks._exchange import gather
from ray_parallel.sequence.running._attention import Call, Kind, Mesh, attend
from ray_parallel.sequence.running._softmax import Part, partial_attention

KINDS: tuple[Kind, ...] = get_args(Kind)
few = settings(max_examples=25, deadline=None)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def single(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return plain(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2)


def mesh_of(comm: ThreadComm, kind: Kind) -> Mesh:
    return Mesh.of(comm, kind, (2 if comm.size % 2 == 0 else 1) if kind == "usp" else None)


def parallel(
    kind: Kind,
    ranks: int,
    lengths: dict[str, int],
    qkv: tuple[Tensor, Tensor, Tensor],
    streams: tuple[tuple[str, ...], tuple[str, ...]],
    mask: Tensor | None = None,
    **options: Any,
) -> list[Tensor]:
    """The whole output as each rank puts it together."""
    q, k, v = qkv

    def rank(comm: ThreadComm) -> Tensor:
        layout = Layout.of(lengths, ranks=comm.size, rank=comm.rank)
        q_streams, kv_streams = streams
        call = Call(
            q=layout.take(q, q_streams, 1) if q_streams else q,
            k=layout.take(k, kv_streams, 1) if kv_streams else k,
            v=layout.take(v, kv_streams, 1) if kv_streams else v,
            q_streams=q_streams,
            kv_streams=kv_streams,
            mask=mask,
            kernel=plain,
            **options,
        )
        out = attend(mesh_of(comm, kind), layout, call)
        held = out.shape[1]
        assert held == (layout.size(q_streams) if q_streams else q.shape[1])
        return gather(comm, layout, [out], q_streams, 1)[0] if q_streams else out

    return run_threads(ranks, rank, timeout_s=20)


def tensors(seed: int, batch: int, q_len: int, kv_len: int, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, q_len, heads, 8), (batch, kv_len, kv_heads, 8), (batch, kv_len, kv_heads, 8))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def close(parts: list[Tensor], want: Tensor) -> None:
    for part in parts:
        torch.testing.assert_close(part, want, rtol=0, atol=1e-6 * want.abs().max().item())
        assert torch.equal(part, parts[0]), "the ranks hold different bits of the same thing"


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    lengths = {"txt": draw(st.integers(1, 6)), "img": draw(st.integers(1, 23))}
    streams = draw(st.sampled_from([("txt", "img"), ("img",), ("img", "txt")]))
    kv_heads = draw(st.integers(1, 5))
    return {
        "lengths": lengths,
        "streams": (streams, draw(st.sampled_from([streams, ("img",)]))),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 2)),
        "batch": draw(st.integers(1, 2)),
        "ranks": draw(st.integers(1, 4)),
        "mask": draw(st.sampled_from(["none", "keys", "dense", "heads", "dead rows"])),
        "seed": draw(st.integers(0, 1000)),
    }


def mask_of(case: dict[str, Any], q_len: int, kv_len: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(case["seed"])
    match case["mask"]:
        case "none":
            return None
        case "keys":
            kept = torch.rand(case["batch"], 1, 1, kv_len, generator=generator) > 0.4
            kept[..., 0] = True
            return kept
        case "dense":
            return torch.randn(1, 1, q_len, kv_len, generator=generator)
        case "heads":
            return torch.randn(case["batch"], case["heads"], q_len, kv_len, generator=generator)
        case _:
            kept = torch.rand(1, 1, q_len, kv_len, generator=generator) > 0.4
            kept[:, :, 0] = False
            return kept


@pytest.mark.parametrize("kind", KINDS)
@few
@given(case=cases())
def test_every_kind_equals_one_process(kind: Kind, case: dict[str, Any]) -> None:
    q_streams, kv_streams = case["streams"]
    q_len, kv_len = (sum(case["lengths"][s] for s in streams) for streams in case["streams"])
    qkv = tensors(case["seed"], case["batch"], q_len, kv_len, case["heads"], case["kv_heads"])
    mask = mask_of(case, q_len, kv_len)
    close(parallel(kind, case["ranks"], case["lengths"], qkv, (q_streams, kv_streams), mask), single(*qkv, mask))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_short_text_beside_a_long_image(kind: Kind, ranks: int, heads: int) -> None:
    qkv = tensors(5, 1, 40, 40, heads, heads)
    streams = ("txt", "img")
    close(parallel(kind, ranks, {"txt": 1, "img": 39}, qkv, (streams, streams)), single(*qkv, None))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_queries_over_cut_keys(kind: Kind) -> None:
    qkv = tensors(6, 2, 5, 21, 3, 3)
    mask = torch.rand(2, 1, 1, 21) > 0.5
    close(parallel(kind, 3, {"v": 21}, qkv, ((), ("v",)), mask), single(*qkv, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_queries_by_a_kernel_that_is_not_plain_attention(kind: Kind) -> None:
    qkv = tensors(6, 2, 5, 21, 3, 3)
    parts = parallel(kind, 2, {"v": 21}, qkv, ((), ("v",)), plain=False)
    assert all(torch.equal(part, single(*qkv, None)) for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_queries_over_whole_keys_say_nothing(kind: Kind) -> None:
    qkv = tensors(7, 1, 21, 5, 3, 3)
    mask = torch.randn(1, 1, 21, 5)
    close(parallel(kind, 3, {"v": 21}, qkv, (("v",), ()), mask), single(*qkv, mask))


def test_ulysses_is_exact_to_the_bit() -> None:
    qkv = tensors(8, 1, 45, 45, 4, 4)
    for ranks in (2, 3, 4):
        assert torch.equal(parallel("ulysses", ranks, {"v": 45}, qkv, (("v",), ("v",)))[0], single(*qkv, None))


@pytest.mark.parametrize("neighbours", [0, 3, 8, -2])
def test_a_group_size_that_does_not_divide_the_ranks_is_refused(neighbours: int) -> None:
    with pytest.raises(PlanError, match=f"4 ranks are no multiple of ulysses={neighbours}; choose a divisor"):
        run_threads(4, lambda comm: Mesh.of(comm, "usp", neighbours))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_moved_are_those_of_the_formula(kind: Kind, ranks: int) -> None:
    tokens, heads, dim = 48, 8, 8
    qkv = tensors(9, 1, tokens, tokens, heads, heads)

    def rank(comm: ThreadComm) -> int:
        layout = Layout.of({"v": tokens}, ranks=comm.size, rank=comm.rank)
        q, k, v = (layout.take(t, ("v",), 1) for t in qkv)
        mesh = mesh_of(comm, kind)
        attend(mesh, layout, Call(q=q, k=k, v=v, q_streams=("v",), kv_streams=("v",), kernel=plain))
        return mesh.sent_bytes

    n_d = tokens * heads * dim * 4
    rows = 2
    want = {
        "ulysses": 4 * n_d * (ranks - 1) // ranks**2,
        "ring": 2 * n_d * (ranks - 1) // ranks,
        "all_gather": 2 * n_d * (ranks - 1) // ranks,
        "usp": 4 * n_d * (rows - 1) // (rows * ranks) + 2 * n_d * (ranks // rows - 1) // ranks,
    }[kind]
    assert run_threads(ranks, rank) == [want] * ranks


@few
@given(cut=st.integers(0, 9), dead=st.booleans(), seed=st.integers(0, 99))
def test_parts_of_the_keys_merge_to_the_whole(cut: int, dead: bool, seed: int) -> None:
    q, k, v = (t.transpose(1, 2) for t in tensors(seed, 1, 4, 9, 2, 2))
    mask = torch.ones(1, 1, 4, 9, dtype=torch.bool)
    if dead:
        mask[..., :cut] = False
    left = partial_attention(q, k[:, :, :cut], v[:, :, :cut], mask[..., :cut])
    right = partial_attention(q, k[:, :, cut:], v[:, :, cut:], mask[..., cut:])
    want = partial_attention(q, k, v, mask)
    for merged in (left.merge(right), right.merge(left)):
        torch.testing.assert_close(merged.out, want.out, rtol=0, atol=1e-6)
        torch.testing.assert_close(merged.lse, want.lse, rtol=0, atol=1e-6)


def test_two_dead_parts_stay_dead() -> None:
    dead = Part(torch.zeros(1, 1, 2, 3), torch.full((1, 1, 2), -torch.inf))
    merged = dead.merge(dead)
    assert not merged.out.any()
    assert (merged.lse == -torch.inf).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_masked_with_the_smallest_number_average_all_keys(kind: Kind) -> None:
    qkv = tensors(11, 1, 25, 25, 4, 4)
    mask = torch.zeros(1, 1, 25, 25)
    mask[:, :, 1:6] = torch.finfo(torch.float32).min
    streams = ("txt", "v")
    close(parallel(kind, 4, {"txt": 3, "v": 22}, qkv, (streams, streams), mask), single(*qkv, mask))


def test_values_may_be_wider_than_keys_and_rows_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_parallel.sequence.running._softmax._SCORES_AT_ONCE", 64)
    q, k, v = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 6)
    mask = torch.rand(1, 1, 9, 7) > 0.3
    mask[:, :, 3] = False
    part = partial_attention(q, k, v, mask)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).nan_to_num(0.0)
    torch.testing.assert_close(part.out, want, rtol=0, atol=1e-6)
    assert (part.lse[:, :, 3] == -torch.inf).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("spiral", None), "unknown"),
        (("usp", None), "group size"),
        (("usp", 2), "no multiple"),
        (("ulysses", 2), "group size"),
    ],
)
def test_a_mesh_that_cannot_be(arguments: tuple[Any, int | None], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        run_threads(3, lambda comm: Mesh.of(comm, *arguments), timeout_s=5)
