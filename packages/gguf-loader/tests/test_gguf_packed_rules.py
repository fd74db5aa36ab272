"""What may be cut off packed weights, stated as laws: exactly what starts and ends between two blocks, equal to the
same cut of the dense weights; the rest is refused, and torch's own errors stay torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from gguf_packing import packed, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gguf_loader import GgufPackedError, PackedTensor

BLOCK = {"Q8_0": 32, "Q4_0": 32, "NVFP4": 64, "Q6_K": 256}


@st.composite
def tensors(draw: st.DrawFn) -> PackedTensor:
    """Packed weights of up to four dimensions, whose rows hold whole blocks, parts of one, or both."""
    name = draw(st.sampled_from(sorted(BLOCK)))
    weights = BLOCK[name] * draw(st.integers(1, 12))
    sizes = []
    for _ in range(draw(st.integers(0, 3))):
        divisors = [size for size in range(1, 65) if weights % size == 0]
        sizes.append(draw(st.sampled_from(divisors)))
        weights //= sizes[-1]
    return packed(name, *draw(st.permutations([*sizes, weights])))


def between_blocks(tensor: PackedTensor, *rows: int) -> bool:
    """Whether every one of these rows starts where a block starts."""
    row_weights = math.prod(tensor.shape[1:])
    return all(row * row_weights % tensor.ggml_type.block_size == 0 for row in rows)


def same_or_refused(cut: Callable[[Tensor], Sequence[Tensor]], tensor: PackedTensor, *, allowed: bool) -> None:
    """The pieces of the packed weights are those of the dense ones where they are allowed, else they are refused."""
    if not allowed:
        with pytest.raises(GgufPackedError, match=r"starts inside a .* block"):
            cut(tensor)
        return
    for piece, dense in zip(cut(tensor), cut(tensor.dequantize()), strict=True):
        assert isinstance(piece, PackedTensor)
        assert piece.shape == dense.shape
        assert same_bits(piece.dequantize(), dense.contiguous())


@given(tensor=tensors(), start=st.integers(-70, 70), stop=st.integers(-70, 70))
@settings(max_examples=80, deadline=None)
def test_a_slice_is_taken_exactly_where_it_cuts_no_block(tensor: PackedTensor, start: int, stop: int) -> None:
    first, last, _ = slice(start, stop).indices(tensor.shape[0])
    allowed = between_blocks(tensor, first, max(first, last)) or (first, last) == (0, tensor.shape[0])
    same_or_refused(lambda t: [t[start:stop]], tensor, allowed=allowed)


@given(tensor=tensors(), size=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_a_split_is_taken_exactly_where_it_cuts_no_block(tensor: PackedTensor, size: int) -> None:
    starts = range(0, tensor.shape[0], size)
    same_or_refused(lambda t: torch.split(t, size), tensor, allowed=between_blocks(tensor, *starts))


@given(tensor=tensors(), index=st.integers(0, 63))
@settings(max_examples=60, deadline=None)
def test_a_row_is_taken_exactly_where_it_holds_whole_blocks(tensor: PackedTensor, index: int) -> None:
    row = index % tensor.shape[0]
    same_or_refused(lambda t: [t[row]], tensor, allowed=between_blocks(tensor, row, row + 1))
    same_or_refused(lambda t: [t[row - t.shape[0]]], tensor, allowed=between_blocks(tensor, row, row + 1))


@given(tensor=tensors(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_view_has_the_shape_that_torch_gives_it(tensor: PackedTensor, data: st.DataObject) -> None:
    sizes = data.draw(st.permutations(tensor.shape))
    merged = [*sizes[:-2], math.prod(sizes[-2:])] if len(sizes) > 1 else [1, *sizes]
    left_open = data.draw(st.integers(0, len(merged)))
    wanted = [-1 if place == left_open else size for place, size in enumerate(merged)]
    view = tensor.view(wanted)
    assert isinstance(view, PackedTensor)
    assert view.shape == tensor.dequantize().view(wanted).shape
    assert view.data_ptr() == tensor.data_ptr()


@given(tensor=tensors(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_joined_again_are_the_whole(tensor: PackedTensor, data: st.DataObject) -> None:
    allowed = [row for row in range(tensor.shape[0] + 1) if between_blocks(tensor, row)]
    cuts = sorted(data.draw(st.lists(st.sampled_from(allowed), max_size=3)))
    ends = [*cuts, tensor.shape[0]]
    sizes = [end - start for start, end in zip([0, *cuts], ends, strict=True)]
    joined = torch.cat(torch.split(tensor, sizes))
    assert torch.equal(joined, tensor)
    assert joined.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("size", [0, -1])
def test_pieces_of_no_or_negative_size_are_refused(size: int) -> None:
    with pytest.raises(GgufPackedError, match=f"cannot be split into pieces of {size} rows"):
        torch.split(packed("Q8_0", 4, 32), size)
    with pytest.raises(GgufPackedError, match=r"sizes \[5, -1\] do not sum to the 4 rows of the tensor"):
        torch.split(packed("Q8_0", 4, 32), [5, -1])


@pytest.mark.parametrize("shape", [(-1, -1), (-4, -32), (3, -1), (0, -1), (-2, 64), (129,)])
def test_shapes_that_do_not_hold_the_weights_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GgufPackedError, match=r"does not hold the 128 weights of \(4, 32\)"):
        packed("Q8_0", 4, 32).view(shape)


@pytest.mark.parametrize("place", [-4, 3])
def test_a_dimension_that_is_not_there_is_an_index_error(place: int) -> None:
    tensor = packed("Q8_0", 4, 32)
    with pytest.raises(IndexError):
        tensor.narrow(place, 0, 1)
    with pytest.raises(IndexError, match=f"dimension {place} is out of range"):
        tensor.unsqueeze(place)


@pytest.mark.parametrize("place", [-3, -2, -1, 0, 1, 2])
def test_a_dimension_of_one_may_be_put_anywhere(place: int) -> None:
    tensor = packed("Q8_0", 4, 32)
    assert tensor.unsqueeze(place).shape == tensor.dequantize().unsqueeze(place).shape


def test_equality_is_that_of_the_weights_in_any_order() -> None:
    tensor, other = packed("Q8_0", 4, 32), packed("Q4_0", 4, 32)
    dense = tensor.dequantize()
    assert torch.equal(tensor, dense) and torch.equal(dense, tensor)
    assert torch.equal(tensor, tensor.clone())
    for different in (dense + 1, dense[:2], other, tensor[:2]):
        assert not torch.equal(tensor, different) and not torch.equal(different, tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
@pytest.mark.parametrize("shape", [(4, 32), (2, 4, 32)])
def test_copying_into_dense_memory_rounds_and_spreads_as_torch_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = packed("Q8_0", 4, 32)
    found, expected = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    assert torch.equal(found.copy_(tensor), expected.copy_(tensor.dequantize(torch.float32)))


def test_an_empty_cut_is_an_empty_tensor() -> None:
    empty = packed("Q8_0", 4, 32)[4:]
    assert isinstance(empty, PackedTensor)
    assert (empty.shape, empty.nbytes, empty.dequantize().shape) == ((0, 32), 0, (0, 32))


def test_the_device_of_new_memory_may_be_named_as_text() -> None:
    tensor = packed("Q8_0", 4, 32)
    assert torch.empty_like(tensor, device="meta", dtype=torch.float16).dtype is torch.float16
    assert tensor.to("meta").dequantize().device.type == "meta"
