from __future__ import annotations

from pathlib import Path

import gguf_convert as convert
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gguf_loader import GgufHeader, GgufKeyError, GgufMetadataError, read_header, type_by_name
from gguf_loader.packed._tensor import PackedTensor
from gguf_loader.text._heads import heads_of, restore_row_order


def header_with(tmp_path: Path, **counts: object) -> GgufHeader:
    metadata = {f"llama.attention.{key}": value for key, value in counts.items()}
    return read_header(convert.write(tmp_path / "heads.gguf", "llama", {"t": torch.zeros(2)}, metadata))


@given(heads=st.integers(1, 8), half=st.integers(1, 8), columns=st.integers(1, 3))
def test_restoring_undoes_the_converter(heads: int, half: int, columns: int) -> None:
    rows = torch.arange(heads * 2 * half * columns).view(-1, columns)
    assert torch.equal(restore_row_order(convert.interleave(rows, heads), heads, "t"), rows)


@given(heads=st.integers(1, 8), half=st.integers(1, 8))
def test_a_bias_is_restored_as_the_rows_of_a_matrix(heads: int, half: int) -> None:
    bias = torch.arange(heads * 2 * half)
    assert torch.equal(restore_row_order(convert.interleave(bias, heads), heads, "t"), bias)


@given(
    heads=st.integers(1, 4),
    half=st.integers(1, 4),
    blocks=st.integers(1, 3),
    name=st.sampled_from(["Q8_0", "Q4_K", "IQ4_XS", "MXFP4"]),
)
def test_packed_rows_move_whole(heads: int, half: int, blocks: int, name: str) -> None:
    kind = type_by_name(name)
    rows = torch.randint(0, 255, (heads * 2 * half, blocks * kind.type_size), dtype=torch.uint8)
    shape = (rows.shape[0], blocks * kind.block_size)
    stored = PackedTensor(convert.interleave(rows, heads).flatten(), kind, shape, dtype=torch.float16)
    restored = restore_row_order(stored, heads, "t")
    assert isinstance(restored, PackedTensor)
    assert torch.equal(restored.packed.view_as(rows), rows)
    assert (restored.shape, restored.dtype, restored.ggml_type) == (stored.shape, torch.float16, kind)


@pytest.mark.parametrize(("rows", "heads"), [(12, 5), (6, 2), (8, 0)])
def test_rows_that_are_no_whole_heads_are_refused(rows: int, heads: int) -> None:
    with pytest.raises(GgufKeyError, match=f"tensor 'blk.0.attn_q.weight': {rows} rows cannot be {heads} heads"):
        restore_row_order(torch.zeros(rows, 2), heads, "blk.0.attn_q.weight")


def test_packed_rows_that_share_a_block_cannot_move() -> None:
    kind = type_by_name("Q4_0")
    stored = PackedTensor(torch.zeros(4 * 18, dtype=torch.uint8), kind, (8, 16))
    with pytest.raises(GgufKeyError, match=r"tensor 'blk.0.attn_q.weight': rows of 16 weights share Q4_0 blocks of 32"):
        restore_row_order(stored, 2, "blk.0.attn_q.weight")


def test_head_counts_come_from_the_metadata(tmp_path: Path) -> None:
    header = header_with(tmp_path, head_count=32, head_count_kv=8)
    assert heads_of("blk.3.attn_q.weight", header) == 32
    assert heads_of("blk.3.attn_k.bias", header) == 8
    for name in ("blk.3.attn_v.weight", "blk.3.attn_q_norm.weight", "x.blk.3.attn_q.weight", "token_embd.weight"):
        assert heads_of(name, header) is None


def test_without_kv_heads_each_head_has_its_own_keys(tmp_path: Path) -> None:
    assert heads_of("blk.0.attn_k.weight", header_with(tmp_path, head_count=12)) == 12


def test_head_counts_may_differ_by_layer(tmp_path: Path) -> None:
    header = header_with(tmp_path, head_count=[8, 4], head_count_kv=[2, 1])
    assert [heads_of(f"blk.{layer}.attn_q.weight", header) for layer in (0, 1)] == [8, 4]
    assert [heads_of(f"blk.{layer}.attn_k.weight", header) for layer in (0, 1)] == [2, 1]
    with pytest.raises(GgufMetadataError, match="head counts for 2 layers, but there is a layer 2"):
        heads_of("blk.2.attn_q.weight", header)


def test_without_head_counts_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(GgufMetadataError, match=r"metadata 'llama.attention.head_count': missing"):
        heads_of("blk.0.attn_q.weight", header_with(tmp_path))


def test_a_head_count_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    header = header_with(tmp_path, head_count=[4.0, 4.5])
    with pytest.raises(GgufMetadataError, match=r"'llama.attention.head_count': an array of FLOAT32, not of integers"):
        heads_of("blk.1.attn_q.weight", header)
