"""w3 loses nothing, holds what its page says, and refuses bytes that contradict themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_packed import EVERY_PATTERN, all_patterns_packable, normal, same_bits, weights
from torch import Tensor

from device_placement.packed import DamagedPackError, Layout, PackedError, check_buffer, decode_with, encode
from device_placement.packed import _format as packed_format


def packed(dense: Tensor) -> tuple[Tensor, Layout]:
    found = encode(dense)
    assert found is not None
    return found


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many stretches in a small tensor."""
    monkeypatch.setattr(packed_format, "STRETCH_WEIGHTS", {"cpu": 2048})


@given(weights())
@settings(max_examples=150, deadline=None)
def test_what_is_packed_is_decoded_bit_for_bit_or_stays_dense(dense: Tensor) -> None:
    found = encode(dense)
    if found is None:
        return
    buffer, layout = found
    check_buffer(buffer, layout)
    assert buffer.nbytes == layout.size_bytes < dense.nbytes == layout.dense_bytes
    assert same_bits(decode_with(buffer, layout), dense)


@pytest.mark.parametrize("seed", range(2))
def test_every_bit_pattern_survives(seed: int) -> None:
    dense = all_patterns_packable(seed)
    assert same_bits(decode_with(*packed(dense)), dense)
    assert set(dense.view(torch.int16).tolist()) == set(range(-32768, 32768))


def test_several_stretches_are_decoded_like_one(short_stretches: None) -> None:
    dense = all_patterns_packable()
    buffer, layout = packed(dense)
    check_buffer(buffer, layout)
    assert same_bits(decode_with(buffer, layout), dense)


def test_the_same_buffer_in_stretches_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = normal(9 * 1024 + 5)
    at_once = packed(dense)
    monkeypatch.setattr(packed_format, "STRETCH_WEIGHTS", {"cpu": 2048})
    in_stretches = packed(dense)
    assert torch.equal(at_once[0], in_stretches[0])
    assert at_once[1] == in_stretches[1]


@pytest.mark.parametrize("dense", [torch.empty(0), torch.ones(5), torch.zeros(0, 7), EVERY_PATTERN], ids=len)
def test_what_packing_does_not_make_smaller_stays_dense(dense: Tensor) -> None:
    assert encode(dense.bfloat16()) is None


def test_normal_weights_take_about_70_percent() -> None:
    buffer, layout = packed(normal(512, 512))
    assert 0.695 < buffer.nbytes / layout.dense_bytes < 0.705


def test_a_tensor_that_is_not_contiguous_is_packed_in_its_logical_order() -> None:
    dense = normal(100, 64).t()
    assert same_bits(decode_with(*packed(dense)), dense.contiguous())


def test_only_bf16_is_packed() -> None:
    with pytest.raises(PackedError, match="only bfloat16 is packed"):
        encode(torch.ones(4096).half())


@pytest.mark.parametrize(
    "out",
    [torch.empty(4096), torch.empty(64, 64).bfloat16(), torch.empty(8192).bfloat16()[::2]],
    ids=["dtype", "shape", "stride"],
)
def test_an_output_that_does_not_fit_is_refused(out: Tensor) -> None:
    with pytest.raises(PackedError, match="pass a contiguous bfloat16 tensor of the same shape and device"):
        decode_with(*packed(normal(4096)), out=out)


def test_decoding_writes_into_the_given_tensor_and_nowhere_else() -> None:
    dense = normal(5003)
    guarded = torch.full((5003 + 64,), 7.0).bfloat16()
    decode_with(*packed(dense), out=guarded[:5003])
    assert same_bits(guarded[:5003], dense)
    assert bool((guarded[5003:] == 7).all())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base": 250}, "above 249"),
        ({"base": -1}, "not a whole number of 0 or more"),
        ({"base": 1.0}, "not a whole number"),
        ({"escapes": True}, "not a whole number"),
        ({"escapes": 4097}, "4096 weights cannot have 4097 escapes"),
        ({"shape": (64, -64)}, "size -64"),
        ({"shape": (1 << 40,), "escapes": 1 << 31}, "cannot have 2147483648 escapes"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(change: dict[str, object], reason: str) -> None:
    layout = Layout(shape=(64, 64), base=118, escapes=40)
    with pytest.raises(PackedError, match=reason):
        dataclasses.replace(layout, **change)  # type: ignore[arg-type]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_refused_or_changes_weights_alone(data: st.DataObject) -> None:
    """The check promises: what passes decodes to weights, reading inside the planes."""
    dense = normal(3 * 1024 + 100, seed=data.draw(st.integers(0, 9)))
    buffer, layout = packed(dense)
    where = data.draw(st.integers(0, buffer.numel() - 1))
    buffer[where] ^= data.draw(st.integers(1, 255))
    try:
        check_buffer(buffer, layout)
    except DamagedPackError:
        return
    assert decode_with(buffer, layout).shape == dense.shape


@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_damaged_table_is_refused_by_its_block(block: int) -> None:
    buffer, layout = packed(normal(4 * 1024))
    layout.cut(buffer).starts[block] += 1
    with pytest.raises(DamagedPackError, match=rf"escapes come before block {block}, the codes say \d+"):
        check_buffer(buffer, layout)


def test_codes_that_escape_more_often_than_the_table_says_are_refused() -> None:
    buffer, layout = packed(normal(2 * 1024))
    planes = layout.cut(buffer)
    planes.low[:4], planes.high[:2] = 255, 255
    with pytest.raises(DamagedPackError, match="before block 1"):
        check_buffer(buffer, layout)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b.view(torch.int8), lambda b: b.view(1, -1)])
def test_a_buffer_of_another_size_or_kind_is_refused(change: object) -> None:
    assert callable(change)
    buffer, layout = packed(normal(4096))
    with pytest.raises(DamagedPackError, match=f"is uint8 of {layout.size_bytes} bytes, not"):
        decode_with(change(buffer), layout)
