"""The moves that kernels are made of, against the same done byte by byte."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gguf_loader._scratch import Scratch
from gguf_loader.dequant.eager._lanes import LOW_BITS, LOW_NIBBLES, LOW_PAIRS, Lanes, scaled, signed, unsigned

CPU = torch.device("cpu")


def lanes_of(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int64)


def bytes_of(lanes: Tensor) -> list[int]:
    return unsigned(lanes).tolist()


eights = st.integers(1, 6).flatmap(lambda count: st.binary(min_size=8 * count, max_size=8 * count))


@given(data=eights, shift=st.integers(0, 6), mask=st.sampled_from([1, 3, 15]))
@settings(max_examples=80, deadline=None)
def test_bits_shift_right_and_mask_each_byte(data: bytes, shift: int, mask: int) -> None:
    kept = mask & (0xFF >> shift)
    found = Lanes(Scratch(), CPU).bits("a", lanes_of(data), shift, kept * LOW_BITS)
    assert bytes_of(found) == [(value >> shift) & kept for value in data]


@given(data=eights, shift=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_a_negative_shift_goes_left(data: bytes, shift: int) -> None:
    mask = (0x3F << shift) & 0x7F
    found = Lanes(Scratch(), CPU).bits("a", lanes_of(data), -shift, mask * LOW_BITS)
    assert bytes_of(found) == [(value << shift) & mask for value in data]


def test_the_masks_repeat_in_every_byte() -> None:
    for mask, value in ((LOW_BITS, 1), (LOW_PAIRS, 3), (LOW_NIBBLES, 15)):
        assert mask.to_bytes(8, "little") == bytes([value]) * 8


def test_without_a_mask_bytes_cross_and_a_later_mask_drops_them() -> None:
    lanes = Lanes(Scratch(), CPU)
    crossed = lanes.bits("a", lanes_of(bytes(range(240, 248))), 4)
    assert bytes_of(lanes.bits("b", crossed, 0, LOW_NIBBLES)) == [15] * 8


@given(run=st.sampled_from([8, 16, 24, 32, 64]), planes=st.integers(1, 5), runs=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_interleaved_planes_take_turns_by_runs(run: int, planes: int, runs: int) -> None:
    made = [torch.randint(0, 256, (runs, run), dtype=torch.uint8) for _ in range(planes)]
    found = Lanes(Scratch(), CPU).interleave("q", [plane.view(-1).view(torch.int64) for plane in made], run)
    expected = [value for row in range(runs) for plane in made for value in plane[row].tolist()]
    assert bytes_of(found) == expected


def test_planes_may_hold_any_bits_of_any_float() -> None:
    signalling = torch.tensor([0x7FF0000000000001, 0x7FF4000000000000, -1, 0x7FF8DEADBEEF0001], dtype=torch.int64)
    found = Lanes(Scratch(), CPU).interleave("q", [signalling, signalling], 16)
    assert found.tolist() == [*signalling[:2].tolist() * 2, *signalling[2:].tolist() * 2]


@pytest.mark.parametrize("entry", [torch.int32, torch.int64])
def test_a_lookup_gives_the_bytes_of_the_entries(entry: torch.dtype) -> None:
    table = torch.randint(0, 256, (10, entry.itemsize), dtype=torch.uint8)
    index = torch.tensor([[3, 9], [0, 3]], dtype=torch.int32)
    found = Lanes(Scratch(), CPU).lookup("q", table.view(entry).view(-1), index)
    assert torch.equal(unsigned(found), table[index.view(-1).long()].view(-1))


def test_gathered_columns_are_contiguous() -> None:
    source = torch.arange(60, dtype=torch.uint8).view(3, 20)[:, 2:18]
    lanes = Lanes(Scratch(), CPU)
    assert torch.equal(lanes.gather("a", source), source)
    assert lanes.gather("a", source).is_contiguous()
    assert bytes_of(lanes.gather_lanes("b", source)) == source.flatten().tolist()


def test_halves_are_read_at_any_column() -> None:
    numbers = torch.tensor([[1.5], [-0.25], [65504.0]], dtype=torch.float16)
    rows = torch.cat([torch.zeros(3, 4, dtype=torch.uint8), numbers.view(torch.uint8)], 1)
    assert torch.equal(Lanes(Scratch(), CPU).halves("d", rows[:, 4:6]), numbers.float())


@given(st.integers(-128, 127), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_signed_bytes_less_a_bias_wrap_like_bytes(value: int, bias: int) -> None:
    lanes = torch.full((8,), value, dtype=torch.int8).view(torch.int64)
    assert signed(lanes.clone()).tolist() == [value] * 8
    wrapped = (value - bias + 128) % 256 - 128
    assert signed(lanes.clone(), bias=bias).tolist() == [wrapped] * 8


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_each_scale_serves_its_share_of_the_weights(dtype: torch.dtype) -> None:
    quants = torch.arange(64).to(dtype)
    scale = torch.tensor([[0.5, -2.0], [float("inf"), 0.0]])
    weights = torch.empty(2, 32)
    scaled(weights, quants, scale)
    expected = quants.float().view(4, 16) * scale.view(4, 1)
    assert torch.equal(weights.view(4, 16), expected)
    scaled(weights, quants, scale, scale - 1)
    assert torch.allclose(weights.view(4, 16), expected + (scale - 1).view(4, 1), equal_nan=True)


def test_constants_of_the_cpu_are_not_copied() -> None:
    table = torch.arange(4)
    assert Lanes(Scratch(), CPU).table(lambda: table) is table


def test_constants_of_other_devices_are_copied_once_a_scratch() -> None:
    scratch, calls = Scratch(), []

    def make(count: int) -> Tensor:
        calls.append(count)
        return torch.arange(count)

    lanes = Lanes(scratch, torch.device("meta"))
    first, again, other = lanes.table(make, 4), lanes.table(make, 4), lanes.table(make, 5)
    assert first is again
    assert (first.device.type, first.shape, other.shape) == ("meta", (4,), (5,))
    assert calls == [4, 5]


def test_a_buffer_keeps_its_place_until_it_must_grow() -> None:
    scratch = Scratch()
    first = scratch.take("a", (4, 4), torch.float32, CPU)
    assert scratch.take("a", (64,), torch.uint8, CPU).data_ptr() == first.data_ptr()
    assert scratch.take("b", (4, 4), torch.float32, CPU).data_ptr() != first.data_ptr()
    grown = scratch.take("a", (5, 4), torch.float32, CPU)
    assert scratch.take("a", (4, 4), torch.float32, CPU).data_ptr() == grown.data_ptr()
    assert scratch.size_bytes == 80 + 64


def test_buffers_made_in_inference_mode_serve_outside_of_it() -> None:
    scratch = Scratch()
    with torch.inference_mode():
        buffer = scratch.take("a", (4,), torch.float32, CPU)
    assert not buffer.is_inference()
    buffer.fill_(1)


def test_views_of_many_shapes_do_not_pile_up() -> None:
    scratch = Scratch()
    whole = scratch.take("a", (4000,), torch.uint8, CPU)
    seen = []
    for size in range(1, 2000):
        view = scratch.take("a", (size,), torch.uint8, CPU)
        assert view.data_ptr() == whole.data_ptr()
        seen.append(weakref.ref(view))
    del view
    assert sum(one() is not None for one in seen) < 600
    assert scratch.size_bytes == 4000
