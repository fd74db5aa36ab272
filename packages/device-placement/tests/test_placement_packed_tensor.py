"""A packed weight is its weights to whoever reads it; nobody reads its code as numbers, nobody's write is lost."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from placement_packed import normal, same_bits
from torch import Tensor, nn
from torch.nn import functional

from device_placement.packed import DamagedPackError, Layout, PackedError, PackedWeight
from device_placement.packed._read_only import ReadOnly

DENSE = normal(128, 160)


def packed() -> PackedWeight:
    weight = PackedWeight.of(DENSE)
    assert weight is not None
    return weight


X = normal(3, 160, seed=5, scale=1.0)

READS: dict[str, Callable[[Tensor], object]] = {
    "linear": lambda w: functional.linear(X, w),
    "matmul": lambda w: X @ w.t(),
    "einsum": lambda w: torch.einsum("bi,oi->bo", X, w),
    "conv": lambda w: functional.conv1d(X.view(1, 160, 3), w.unsqueeze(-1)),
    "embedding": lambda w: functional.embedding(torch.tensor([3, 1]), w),
    "one row": lambda w: w[5],
    "rows": lambda w: w[3:100:2],
    "one number": lambda w: w[3, 4].item(),
    "mask": lambda w: w[w > 0.01],
    "split": lambda w: torch.split(w, 40, dim=1)[1],
    "cat": lambda w: torch.cat([w, DENSE]),
    "stack": lambda w: torch.stack([w, w]),
    "reshape": lambda w: w.reshape(-1, 2),
    "permute": lambda w: w.permute(1, 0),
    "float": lambda w: w.float(),
    "half": lambda w: w.to(torch.float16),
    "its bytes": lambda w: w.view(torch.uint8),
    "its bits": lambda w: w.view(torch.int16),
    "plus": lambda w: w + DENSE,
    "scaled": lambda w: 0.5 * w,
    "reversed": lambda w: DENSE - w,
    "sum": lambda w: w.sum(),
    "norm": lambda w: w.norm(),
    "channels last": lambda w: w.view(1, 8, 16, 160).clone(memory_format=torch.channels_last),
    "contiguous": lambda w: w.contiguous() + 0,
    "where": lambda w: torch.where(w > 0, w, DENSE),
    "addmm": lambda w: torch.addmm(DENSE[0, :128], X, w.t()),
    "lora": lambda w: w + (normal(128, 4) @ normal(4, 160)) * 0.5,
    "into a dense one": lambda w: torch.empty_like(DENSE).copy_(w),
    "into another dtype": lambda w: torch.empty(128, 160).copy_(w),
    "into out": lambda w: torch.add(w, 1, out=torch.empty_like(DENSE)),
    "norm of several": lambda w: torch._foreach_norm([w, DENSE])[0],
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_operation_sees_the_weights(read: Callable[[Tensor], object], inference: bool) -> None:
    with torch.inference_mode(inference):
        found, expected = read(packed()), read(DENSE)
        if isinstance(expected, Tensor):
            assert isinstance(found, Tensor)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        else:
            assert found == expected


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda w: w.add_(1),
    "fill": lambda w: w.fill_(0),
    "init": lambda w: nn.init.zeros_(w),
    "copy": lambda w: w.copy_(DENSE),
    "out": lambda w: torch.add(DENSE, 1, out=w),
    "item": lambda w: w.__setitem__(0, 1.0),
    "mask": lambda w: w.__setitem__(DENSE > 0, 1.0),
    "row": lambda w: w[0].zero_(),
    "transposed": lambda w: w.t().mul_(2),
    "piece": lambda w: w.chunk(2)[1].add_(1),
    "view of a view": lambda w: w.view(-1)[3:9].view(2, 3).fill_(1),
    "bits": lambda w: w.view(torch.int16).zero_(),
    "unbound": lambda w: w.unbind()[2].zero_(),
    "detached": lambda w: w.detach().zero_(),
    "data": lambda w: w.data.zero_(),
    "new data": lambda w: setattr(w, "data", DENSE),
    "several": lambda w: torch._foreach_add_([w, DENSE.clone()], 1),
    "resize": lambda w: w.resize_(4, 4),
    "random": lambda w: w.normal_(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_is_refused_and_changes_nothing(write: Callable[[Tensor], object], inference: bool) -> None:
    with torch.inference_mode(inference):
        weight = packed()
        with pytest.raises((PackedError, RuntimeError), match=r"packed weights|resize_"):
            write(weight)
        assert same_bits(weight.dense(), DENSE)


@pytest.mark.parametrize(
    "ask",
    [
        lambda w: w.data_ptr(),
        lambda w: w.untyped_storage().data_ptr(),
        lambda w: w.numpy(),
        lambda w: w.tolist(),
    ],
    ids=["address", "storage", "numpy", "list"],
)
def test_the_code_is_not_handed_out_as_weights(ask: Callable[[Tensor], object]) -> None:
    with pytest.raises((PackedError, RuntimeError)):
        ask(packed())


@pytest.mark.parametrize("is_parameter", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        copy.deepcopy,
        lambda w: pickle.loads(pickle.dumps(w)),
        lambda w: w.clone(),
        lambda w: w.to("cpu", copy=True),
        lambda w: w.to(torch.bfloat16, copy=True),
    ],
    ids=["deepcopy", "pickle", "clone", "to", "to bf16"],
)
def test_copies_stay_packed_and_share_nothing(how: Callable[[Tensor], Tensor], is_parameter: bool) -> None:
    weight: Tensor = nn.Parameter(packed(), requires_grad=False) if is_parameter else packed()
    twin = how(weight)
    assert isinstance(twin, PackedWeight)
    assert isinstance(weight, PackedWeight)
    assert twin.packed.data_ptr() != weight.packed.data_ptr()
    assert same_bits(twin.dense(), DENSE)


def test_a_saved_one_is_loaded_by_torch_with_weights_only() -> None:
    file = io.BytesIO()
    torch.save({"weight": packed()}, file)
    file.seek(0)
    with torch.serialization.safe_globals(PackedWeight.safe_globals()):
        loaded = torch.load(file, weights_only=True)
    assert same_bits(loaded["weight"].dense(), DENSE)


def test_a_pickle_of_a_part_of_a_large_buffer_takes_that_part_alone() -> None:
    weight = packed()
    large = torch.zeros(1 << 20, dtype=torch.uint8)
    large[512 : 512 + weight.nbytes] = weight.packed
    assert len(pickle.dumps(weight.over(large[512 : 512 + weight.nbytes]))) < weight.nbytes + 5000


def test_a_damaged_pickle_is_refused() -> None:
    weight = packed()
    weight.layout_w3.cut(weight.packed).starts[3] = -7
    with pytest.raises(DamagedPackError, match="-7 escapes come before block 3"):
        pickle.loads(pickle.dumps(weight))


def test_a_buffer_that_does_not_fit_is_refused() -> None:
    weight = packed()
    with pytest.raises(DamagedPackError, match="pack the tensor again"):
        PackedWeight(weight.packed, Layout(shape=(128, 161), base=118, escapes=40))


def test_the_code_of_another_tensor_is_copied_where_it_fits() -> None:
    weight, twin = packed(), packed().clone()
    assert isinstance(twin, PackedWeight)
    twin.packed.zero_()
    twin.copy_(weight)
    assert same_bits(twin.dense(), DENSE)


def test_gradients_of_lora_and_of_inputs_equal_those_beside_dense_weights() -> None:
    def gradients(weight: Tensor) -> list[Tensor]:
        x, a, b = (tensor.clone().requires_grad_() for tensor in (X, normal(4, 160), normal(128, 4)))
        functional.linear(x, weight + b @ a).float().square().sum().backward()  # type: ignore[no-untyped-call]
        return [tensor.grad for tensor in (x, a, b) if tensor.grad is not None]

    found, expected = gradients(nn.Parameter(packed(), requires_grad=False)), gradients(DENSE)
    assert len(found) == 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_view_computes_plain_tensors_and_has_read_only_views() -> None:
    view = packed().t()
    assert type(view) is ReadOnly
    assert type(view.view(-1, 1) if view.is_contiguous() else view[0]) is ReadOnly
    assert type(view + 1) is Tensor
    assert type(view.clone()) is Tensor
    assert view.data_ptr() == view.plain.data_ptr()
