"""Attention in parts: every way to compute a part is the same attention, and parts merge in any order."""

from __future__ import annotations

import itertools
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_parallel.sequence import PlanError
from ray_parallel.sequence.running import _softmax as module
from ray_parallel.sequence.running._softmax import Part, partial_attention, without_drowned

unhurried = settings(deadline=None, max_examples=40)


def draws(seed: int, queries: int, keys: int, heads: int, kv_heads: int, dim: int, v_dim: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, heads, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, v_dim))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """Softmax attention as it is written down, in fp64."""
    k, v = (tensor.double().repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return weights @ v, lse


def masks(kind: str, queries: int, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(7)
    kept = torch.rand(1, 1, 1 if kind == "columns" else queries, keys, generator=generator) > 0.4
    return kept if kind in ("kept", "columns") else torch.where(kept, torch.randn(kept.shape), -torch.inf)


@unhurried
@given(
    seed=st.integers(0, 99),
    queries=st.integers(0, 6),
    keys=st.integers(0, 9),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dims=st.sampled_from([(4, 4), (4, 6), (8, 2)]),
    kind=st.sampled_from(["none", "kept", "columns", "added"]),
    scale=st.sampled_from([None, 0.5]),
    rows=st.sampled_from([1, 2**26]),
)
def test_a_part_is_softmax_attention_over_its_keys(
    seed: int, queries: int, keys: int, heads: Any, dims: Any, kind: str, scale: float | None, rows: int
) -> None:
    """With the fused kernel and without it, all rows at once and one by one, whatever is masked."""
    q, k, v = draws(seed, queries, keys, *heads, *dims)
    mask = masks(kind, queries, keys)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_SCORES_AT_ONCE", rows)
        part = partial_attention(q, k, v, mask, scale)
    assert (part.out.dtype, part.lse.dtype) == (torch.float32, torch.float32)
    out, lse = reference(q, k, v, mask, scale)
    torch.testing.assert_close(part.out.double(), out, rtol=0, atol=2e-6)
    torch.testing.assert_close(part.lse.double(), lse, rtol=0, atol=2e-6)


@unhurried
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 9), min_size=1, max_size=3), dead=st.integers(0, 9))
def test_parts_merge_to_the_whole_in_any_order(seed: int, cuts: list[int], dead: int) -> None:
    q, k, v = draws(seed, 3, 9, 2, 2, 4, 4)
    mask = (torch.arange(9) >= dead).expand(1, 1, 3, 9)
    edges = [0, *sorted(cuts), 9]
    parts = [
        partial_attention(q, k[:, :, low:high], v[:, :, low:high], mask[..., low:high])
        for low, high in itertools.pairwise(edges)
    ]
    out, lse = reference(q, k, v, mask, None)
    for order in itertools.permutations(parts):
        merged = reduce(Part.merge, order)
        torch.testing.assert_close(merged.out.double(), out, rtol=0, atol=2e-6)
        torch.testing.assert_close(merged.lse.double(), lse, rtol=0, atol=2e-6)


@given(drowned=st.lists(st.booleans(), min_size=4, max_size=4), huge=st.sampled_from([-1e32, -3.4e38]))
def test_rows_whose_scores_drown_weigh_all_keys_alike(drowned: list[bool], huge: float) -> None:
    """As torch does, which adds the huge number to the scores; by parts their scores would be gone."""
    q, k, v = draws(3, 4, 6, 1, 1, 4, 4)
    mask = torch.where(torch.tensor(drowned)[:, None], huge, torch.randn(4, 6))[None, None]
    want = F.scaled_dot_product_attention(q, k, v, mask)
    calm_q, calm = without_drowned(q, mask)
    assert calm is not None
    halves = [partial_attention(calm_q, k[:, :, s], v[:, :, s], calm[..., s]) for s in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(halves[0].merge(halves[1]).out, want, rtol=0, atol=2e-6)


def test_rows_that_see_nothing_at_all_stay_so() -> None:
    q, _, _ = draws(0, 2, 1, 1, 1, 4, 4)
    mask = torch.full((1, 1, 2, 5), -torch.inf)
    calm_q, calm = without_drowned(q, mask)
    assert torch.equal(calm_q, q)
    assert calm is not None
    assert torch.equal(calm, mask)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 2, 5, dtype=torch.bool)])
def test_masks_that_drown_nothing_are_left_alone(mask: Tensor | None) -> None:
    q, _, _ = draws(0, 2, 1, 1, 1, 4, 4)
    calm_q, calm = without_drowned(q, mask)
    assert calm_q is q
    assert calm is mask


def test_a_kernel_of_the_device_is_taken_where_it_fits() -> None:
    """Only shapes and types count; the kernel itself is tested on the device."""
    fits = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16, device="meta")
    assert not module._flash_takes(fits, fits), "a tensor that is not on a GPU"
    for size in (60, 512):
        wrong = torch.empty(1, 1, 1, size, dtype=torch.bfloat16, device="meta")
        assert not module._flash_takes(wrong, wrong)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_mask_of_integers_is_refused_in_parts_as_torch_refuses_it_whole(dtype: torch.dtype) -> None:
    q, k, v = draws(0, 3, 4, 2, 2, 8, 8)
    mask = torch.ones(1, 1, 3, 4, dtype=dtype)
    with pytest.raises(RuntimeError, match="attn_mask dtype"):
        F.scaled_dot_product_attention(q, k, v, mask)
    with pytest.raises(PlanError, match=f"an attention mask of {str(dtype)[6:]} has no one meaning; make it boolean"):
        partial_attention(q, k, v, mask)
