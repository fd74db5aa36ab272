"""A packed tensor keeps shape, dtype and blocks consistent through what torch does to tensors."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gguf_packing import packed, random_blocks, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gguf_loader._dtypes import LOGICAL_DTYPES
from gguf_loader._errors import GgufError, GgufPackedError, GgufTypeError
from gguf_loader._types import type_by_name
from gguf_loader.packed._tensor import PackedTensor

Q4_K = type_by_name("Q4_K")


def consistent(tensor: torch.Tensor) -> PackedTensor:
    """The tensor, known to hold exactly the blocks of its shape."""
    assert isinstance(tensor, PackedTensor)
    assert tensor.packed.dtype is torch.uint8
    assert tensor.nbytes == tensor.packed.numel() == tensor.ggml_type.size_bytes(tensor.numel())
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert tensor.device == tensor.packed.device
    assert tensor.is_contiguous()
    assert not tensor.requires_grad
    return tensor


def test_a_packed_tensor_is_its_weights_outside_and_its_blocks_inside() -> None:
    tensor = consistent(packed("Q4_K", 6, 512, dtype=torch.bfloat16))
    assert (tensor.shape, tensor.ndim, tensor.numel(), tensor.dtype) == ((6, 512), 2, 3072, torch.bfloat16)
    assert tensor.nbytes == 3072 // 256 * 144
    assert tensor.data_ptr() == tensor.packed.data_ptr()
    assert repr(tensor) == "PackedTensor(Q4_K, shape=(6, 512), dtype=torch.bfloat16, device='cpu', nbytes=1728)"


def test_the_dtype_is_bfloat16_unless_told_otherwise() -> None:
    assert PackedTensor(random_blocks(Q4_K, 256), Q4_K, (256,)).dtype is torch.bfloat16


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(144, dtype=torch.int8),
        torch.zeros(1, 144, dtype=torch.uint8),
        torch.zeros(288, dtype=torch.uint8)[::2],
        torch.zeros(143, dtype=torch.uint8),
        torch.zeros(288, dtype=torch.uint8),
    ],
    ids=["dtype", "2-D", "strided", "short", "long"],
)
def test_blocks_that_are_not_the_bytes_of_the_shape_are_refused(data: torch.Tensor) -> None:
    with pytest.raises(GgufPackedError):
        PackedTensor(data, Q4_K, (1, 256))


def test_a_shape_of_broken_blocks_is_refused() -> None:
    with pytest.raises(GgufTypeError, match="not a whole number of Q4_K blocks of 256"):
        PackedTensor(torch.zeros(144, dtype=torch.uint8), Q4_K, (3, 100))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float8_e4m3fn, torch.complex64])
def test_dtypes_that_weights_are_not_computed_in_are_refused(dtype: torch.dtype) -> None:
    tensor = packed("Q4_K", 256)
    with pytest.raises(GgufPackedError, match="choose one of"):
        tensor.to(dtype)
    with pytest.raises(GgufPackedError, match="choose one of"):
        PackedTensor(tensor.packed, Q4_K, (256,), dtype=dtype)


@pytest.fixture(params=[torch.enable_grad, torch.inference_mode], ids=["outside", "inside"])
def inference(request: pytest.FixtureRequest) -> Iterator[None]:
    """Outside and inside of inference mode, in which torch does not take composite operations apart."""
    with request.param():
        yield


@pytest.mark.usefixtures("inference")
class TestConversions:
    def test_to_a_dtype_changes_what_it_dequantises_to_and_shares_the_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        for dtype in LOGICAL_DTYPES:
            other = consistent(tensor.to(dtype))
            assert other.dtype is dtype
            assert other.data_ptr() == tensor.data_ptr()
            assert same_bits(other.dequantize(), tensor.dequantize(torch.float32).to(dtype))

    def test_half_float_and_type_are_such_conversions(self) -> None:
        tensor = packed("Q4_K", 256, dtype=torch.bfloat16)
        assert [t.dtype for t in (tensor.half(), tensor.float(), tensor.type(torch.float64))] == [
            torch.float16,
            torch.float32,
            torch.float64,
        ]

    def test_to_the_same_place_is_the_same_tensor(self) -> None:
        tensor = packed("Q4_K", 256)
        assert tensor.to("cpu") is tensor
        assert tensor.to(torch.float32) is tensor
        assert tensor.contiguous() is tensor

    def test_to_another_device_moves_the_blocks(self) -> None:
        moved = consistent(packed("Q6_K", 2, 256).to("meta", torch.float16))
        assert (moved.device.type, moved.dtype, moved.shape) == ("meta", torch.float16, (2, 256))

    def test_a_copy_of_the_same_dtype_has_blocks_of_its_own(self) -> None:
        tensor = packed("Q4_K", 256)
        for other in (tensor.to("cpu", copy=True), tensor.clone(), copy.copy(tensor).clone()):
            assert consistent(other).data_ptr() != tensor.data_ptr()
            assert torch.equal(other, tensor)

    def test_detach_and_data_share_the_blocks(self) -> None:
        tensor = packed("Q4_K", 256)
        assert consistent(tensor.detach()).data_ptr() == tensor.data_ptr()
        assert consistent(tensor.data).data_ptr() == tensor.data_ptr()

    def test_empty_like_has_room_for_the_same_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        empty = consistent(torch.empty_like(tensor, device="meta"))
        assert (empty.shape, empty.device.type) == (tensor.shape, "meta")


class TestShapes:
    def test_views_keep_the_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 512)
        views = [
            tensor.view(8, 256),
            tensor.view(-1, 1024),
            tensor.reshape(2048),
            tensor.flatten(),
            tensor.unsqueeze(1),
            torch.unflatten(tensor, 0, (2, 2)),
            tensor[None],
            tensor.view(torch.Size([2, 2, 512])),
        ]
        for view in views:
            assert consistent(view).data_ptr() == tensor.data_ptr()
            assert torch.equal(view.dequantize().flatten(), tensor.dequantize().flatten())

    @pytest.mark.parametrize("shape", [(3, -1), (5, 5), (-1, 7)])
    def test_views_of_another_size_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises((GgufPackedError, RuntimeError)):
            packed("Q4_K", 4, 256).view(shape)

    @given(start=st.integers(-7, 7), stop=st.integers(-7, 7), name=st.sampled_from(["Q4_K", "Q8_0", "Q6_K"]))
    @settings(max_examples=60, deadline=None)
    def test_slices_of_rows_are_the_rows_of_the_weights(self, start: int, stop: int, name: str) -> None:
        tensor = packed(name, 5, 256)
        rows = consistent(tensor[start:stop])
        assert torch.equal(rows.dequantize(), tensor.dequantize()[start:stop])

    def test_one_row_split_chunk_and_unbind_are_those_of_the_weights(self) -> None:
        tensor = packed("Q4_K", 6, 2, 256)
        dense = tensor.dequantize()
        for found, expected in [
            *zip(torch.split(tensor, 4), torch.split(dense, 4), strict=True),
            *zip(torch.split(tensor, [1, 2, 3]), torch.split(dense, [1, 2, 3]), strict=True),
            *zip(tensor.chunk(3), dense.chunk(3), strict=True),
            *zip(tensor.unbind(), dense.unbind(), strict=True),
            *zip(tensor, dense, strict=True),
            (tensor[-1], dense[-1]),
            (tensor[2, 1], dense[2, 1]),
            (tensor.narrow(0, 2, 3), dense.narrow(0, 2, 3)),
            (tensor[1:3, :, :], dense[1:3]),
        ]:
            assert torch.equal(consistent(found).dequantize(), expected)

    def test_a_slice_shares_the_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        assert tensor[2:].data_ptr() == tensor.data_ptr() + 2 * 144

    def test_concatenated_rows_are_the_rows_of_the_weights(self) -> None:
        first, second = packed("Q4_K", 2, 256, seed=1), packed("Q4_K", 3, 256, seed=2)
        joined = consistent(torch.cat([first, second]))
        assert torch.equal(joined.dequantize(), torch.cat([first.dequantize(), second.dequantize()]))

    def test_rows_of_different_encodings_cannot_be_joined(self) -> None:
        with pytest.raises(GgufPackedError, match="different type"):
            torch.cat([packed("Q4_K", 2, 256), packed("Q5_K", 2, 256)])
        with pytest.raises(GgufPackedError, match="different type"):
            torch.cat([packed("Q4_K", 2, 256), torch.zeros(2, 256)])

    @pytest.mark.parametrize(
        "cut",
        [
            lambda t: t[:, :256],
            lambda t: t[::2],
            lambda t: t[..., 0],
            lambda t: t.split(1, dim=1),
            lambda t: t.unbind(1),
            lambda t: torch.cat([t, t], dim=1),
        ],
    )
    def test_cuts_through_rows_are_refused(self, cut: Callable[[torch.Tensor], object]) -> None:
        with pytest.raises(GgufPackedError, match="dequantize"):
            cut(packed("Q4_K", 4, 512))

    def test_a_row_that_ends_inside_a_block_cannot_be_cut_off(self) -> None:
        folded = packed("Q4_K", 4, 256).view(32, 2, 16)
        with pytest.raises(GgufPackedError, match=r"row 1 of shape \(32, 2, 16\) starts inside a Q4_K block"):
            folded[:1]
        assert consistent(folded[8:16]).shape == (8, 2, 16)

    @pytest.mark.parametrize("index", [4, -5])
    def test_an_index_out_of_range_is_an_index_error(self, index: int) -> None:
        with pytest.raises(IndexError):
            packed("Q4_K", 4, 256)[index]
        with pytest.raises(IndexError, match="out of range for dimension 0 of size 4"):
            torch.select(packed("Q4_K", 4, 256), 0, index)

    def test_pieces_that_do_not_fill_the_tensor_are_refused(self) -> None:
        with pytest.raises(GgufPackedError, match=r"sizes \[1, 2\] do not sum to the 4 rows"):
            torch.split(packed("Q4_K", 4, 256), [1, 2])

    def test_a_scalar_has_no_rows(self) -> None:
        with pytest.raises((GgufPackedError, IndexError)):
            packed("F32")[0]


class TestCopies:
    @pytest.mark.parametrize("parameter", [False, True])
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
    def test_deep_copies_and_pickles_are_equal_and_independent(
        self, duplicate: Callable[[torch.Tensor], torch.Tensor], parameter: bool
    ) -> None:
        tensor: torch.Tensor = packed("Q5_K", 4, 256, dtype=torch.float16)
        if parameter:
            tensor = nn.Parameter(tensor, requires_grad=False)
        other = consistent(duplicate(tensor))
        assert torch.equal(other, tensor)
        assert other.dtype is tensor.dtype
        assert other.data_ptr() != tensor.data_ptr()
        assert isinstance(other, nn.Parameter) is parameter

    def test_a_deep_copy_keeps_ties(self) -> None:
        tensor = packed("Q4_K", 256)
        first, second = copy.deepcopy([tensor, tensor])
        assert first is second

    def test_a_pickled_view_of_a_file_takes_only_its_own_blocks_along(self) -> None:
        file = random_blocks(Q4_K, 256 * 1000)
        tensor = PackedTensor(file[144 : 3 * 144], Q4_K, (2, 256))
        blob = pickle.dumps(tensor)
        assert len(blob) < 4 * tensor.nbytes + 2000
        assert torch.equal(pickle.loads(blob), tensor)

    @pytest.mark.parametrize("weights_only", [False, True])
    def test_torch_save_and_load(self, tmp_path: Path, weights_only: bool) -> None:
        state = {"w": packed("Q6_K", 4, 256), "b": torch.ones(4)}
        torch.save(state, tmp_path / "state.pt")
        with torch.serialization.safe_globals(PackedTensor.safe_globals()):
            loaded = torch.load(tmp_path / "state.pt", weights_only=weights_only)
        assert torch.equal(consistent(loaded["w"]), state["w"])
        assert torch.equal(loaded["b"], state["b"])

    def test_torch_load_refuses_what_was_not_allowed(self) -> None:
        buffer = io.BytesIO()
        torch.save(packed("Q6_K", 4, 256), buffer)
        buffer.seek(0)
        with pytest.raises(pickle.UnpicklingError, match="weights_only"):
            torch.load(buffer, weights_only=True)

    def test_flattened_and_unflattened_it_is_the_same(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        assert is_traceable_wrapper_subclass(tensor)
        names, context = tensor.__tensor_flatten__()
        parts = {name: getattr(tensor, name) for name in names}
        rebuilt = PackedTensor.__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())
        assert torch.equal(consistent(rebuilt), tensor)
        assert rebuilt.data_ptr() == tensor.data_ptr()
        assert hash(context) == hash(rebuilt.__tensor_flatten__()[1])

    def test_share_memory_moves_the_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        before = tensor.dequantize()
        assert not tensor.is_shared()
        assert tensor.share_memory_().is_shared()
        assert torch.equal(tensor.dequantize(), before)

    def test_whether_blocks_are_pinned_is_that_of_their_memory(self) -> None:
        assert not packed("Q4_K", 256).is_pinned()


class TestWriting:
    def test_copying_into_a_dense_tensor_dequantises(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        for dense in (torch.empty(4, 256), torch.empty(4, 256, dtype=torch.bfloat16), torch.empty(256, 4).t()):
            dense.copy_(tensor)
            assert torch.equal(dense, tensor.dequantize(dense.dtype))

    def test_an_ordinary_module_loads_packed_weights_dense(self) -> None:
        norm = nn.LayerNorm(256)
        weight = packed("Q8_0", 256)
        norm.load_state_dict({"weight": weight, "bias": torch.zeros(256)})
        assert type(norm.weight) is nn.Parameter
        assert torch.equal(norm.weight, weight.dequantize(torch.float32))

    def test_copying_packed_into_packed_moves_the_blocks(self) -> None:
        target, source = packed("Q4_K", 4, 256, seed=1), packed("Q4_K", 4, 256, seed=2)
        address = target.data_ptr()
        target.copy_(source)
        assert torch.equal(target, source)
        assert target.data_ptr() == address

    @pytest.mark.parametrize("source", [torch.zeros(4, 256), packed("Q5_K", 4, 256), packed("Q4_K", 2, 512)])
    def test_nothing_is_quantised(self, source: torch.Tensor) -> None:
        with pytest.raises(GgufPackedError, match="nothing is quantised here"):
            packed("Q4_K", 4, 256).copy_(source)

    def test_equal_compares_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        other = consistent(tensor.clone())
        other.packed[5] ^= 1
        assert torch.equal(tensor, tensor.to(torch.float16))
        assert not torch.equal(tensor, other)
        assert not torch.equal(tensor, tensor.view(2, 512))
        assert not torch.equal(tensor, packed("Q5_K", 4, 256))


class TestParameters:
    def test_a_parameter_keeps_its_class_and_its_blocks(self) -> None:
        tensor = packed("Q4_K", 4, 256)
        parameter = nn.Parameter(tensor, requires_grad=False)
        assert isinstance(parameter, nn.Parameter)
        assert consistent(parameter).data_ptr() == tensor.data_ptr()

    @pytest.mark.parametrize("make", [nn.Parameter, lambda t: t.requires_grad_()])
    def test_a_gradient_is_refused(self, make: Callable[[torch.Tensor], object]) -> None:
        with pytest.raises(GgufPackedError, match="no gradient"):
            make(packed("Q4_K", 4, 256))

    def test_a_module_moves_and_converts_it(self) -> None:
        module = nn.Linear(256, 4, bias=False)
        module.weight = nn.Parameter(packed("Q4_K", 4, 256, dtype=torch.bfloat16), requires_grad=False)
        address = module.weight.data_ptr()
        module.half()
        assert consistent(module.weight).dtype is torch.float16
        assert module.weight.data_ptr() == address
        module.to("meta")
        assert consistent(module.weight).device.type == "meta"
        assert isinstance(module.weight, nn.Parameter)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize(
    "operation",
    [
        lambda t: t + 1,
        lambda t: t @ t,
        lambda t: t.t(),
        lambda t: nn.functional.linear(torch.zeros(1, 256), t),
        lambda t: t.sum(),
        lambda t: t.mul_(2),
        lambda t: t[torch.tensor([0])],
        lambda t: t.view(torch.uint8),
        lambda t: torch.zeros_like(t),
        lambda t: t.new_empty(3),
    ],
)
def test_no_other_operation_turns_packed_weights_dense(operation: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(GgufPackedError, match=r"aten\..* does not work on packed weights; call \.dequantize\(\)"):
        operation(packed("Q4_K", 4, 256))


def test_dequantize_takes_dtype_and_out() -> None:
    tensor = packed("Q4_K", 4, 256, dtype=torch.bfloat16)
    exact = tensor.dequantize(torch.float32)
    assert tensor.dequantize().dtype is torch.bfloat16
    out = torch.empty(4, 256, dtype=torch.float16)
    assert tensor.dequantize(out=out) is out
    assert same_bits(out, exact.half())
    with pytest.raises(GgufError):
        tensor.dequantize(torch.float32, out=out)


def test_tensors_that_an_older_version_pickled_come_back() -> None:
    """Version 0.1.0 wrote the name of a module that has moved since."""
    weight = packed("Q8_0", 4, 64)
    text = pickle.dumps(weight, protocol=2).replace(
        b"cgguf_loader.packed._tensor\nrebuild\n", b"cgguf_loader._packed\n_rebuild\n"
    )
    assert b"cgguf_loader._packed\n_rebuild\n" in text
    assert torch.equal(pickle.loads(text).packed, weight.packed)
    names = {entry[1] for entry in PackedTensor.safe_globals() if isinstance(entry, tuple)}
    assert names == {"gguf_loader._packed._rebuild"}
