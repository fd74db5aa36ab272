"""Tensors as views of a flat buffer: values, strides, classes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from placement_models import Packed, packed
from torch import Tensor, nn

from device_placement.tensors._flat_buffers import Spot, dense_stride, is_packed, over, plain_parts, stored_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.bool, torch.complex64)


@st.composite
def dense_tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of any type whose elements fill their memory, in any order of dimensions."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    inverse = sorted(range(len(shape)), key=order.__getitem__)
    return values.permute(order).contiguous().permute(inverse)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Equality that also works on types without ==."""
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


@given(dense_tensors(), st.integers(0, 3))
def test_a_tensor_in_a_buffer_keeps_values_shape_type_and_strides(tensor: Tensor, lines: int) -> None:
    offset = 512 * lines
    spot = Spot.of(tensor, offset)
    buffer = torch.zeros(offset + spot.size_bytes + 512, dtype=torch.uint8)
    spot.view(buffer).copy_(tensor)
    again = spot.view(buffer)
    assert (again.shape, again.dtype) == (tensor.shape, tensor.dtype)
    assert all(a == b for a, b, size in zip(again.stride(), tensor.stride(), tensor.shape, strict=True) if size > 1)
    assert same_bytes(again, tensor)
    assert not buffer[:offset].any()
    assert not buffer[offset + spot.size_bytes :].any()


def test_channels_last_stays_channels_last() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    view = Spot.of(weight, 0).view(torch.zeros(weight.nbytes, dtype=torch.uint8))
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_a_tensor_with_gaps_or_overlaps_becomes_contiguous() -> None:
    assert dense_stride(torch.zeros(4, 8)[:, ::2]) == (4, 1)
    assert dense_stride(torch.zeros(3).expand(2, 3)) == (3, 1)


def test_a_packed_tensor_is_the_tensors_inside_it_wide_elements_first() -> None:
    parameter = packed(3, 5)
    assert is_packed(parameter)
    assert [part.dtype for part in plain_parts(parameter)] == [torch.float32, torch.int8]
    assert stored_bytes(parameter) == 3 * 4 + 3 * 5


def test_a_packed_tensor_over_other_memory_has_the_parts_in_their_roles() -> None:
    parameter = packed(3, 5)
    copies = [part.clone() for part in plain_parts(parameter)]
    again = over(parameter, copies)
    assert isinstance(again, nn.Parameter)
    assert isinstance(again, Packed)
    assert again.codes.data_ptr() == copies[1].data_ptr()
    assert again.scale.data_ptr() == copies[0].data_ptr()
    assert torch.equal(again.dense(), parameter.dense())  # type: ignore[attr-defined]


def test_a_parameter_over_other_memory_is_a_parameter_with_the_same_attributes() -> None:
    parameter = nn.Parameter(torch.randn(2, 2))
    parameter.note = "kept"  # type: ignore[attr-defined]
    memory = torch.zeros(2, 2)
    again = over(parameter, [memory])
    assert type(again) is nn.Parameter
    assert again.requires_grad
    assert again.data_ptr() == memory.data_ptr()
    assert again.note == "kept"  # type: ignore[attr-defined]


def test_a_subclass_with_memory_of_its_own_keeps_its_class() -> None:
    class Marked(Tensor):
        pass

    tensor = torch.randn(4).as_subclass(Marked)
    again = over(tensor, [torch.zeros(4)])
    assert type(again) is Marked
    assert not again.requires_grad


def test_a_buffer_over_other_memory_is_a_plain_tensor() -> None:
    again = over(torch.ones(2), [torch.zeros(2)])
    assert type(again) is Tensor
    assert again.sum() == 0
