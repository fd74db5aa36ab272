"""Operators give what the CPU gives, to the last bit, so that a placed model can be compared with `torch.equal`."""

from __future__ import annotations

import copy
import io
import types
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

Op = Callable[..., torch.Tensor | Sequence[torch.Tensor]]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def whole(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


OPERATORS: dict[str, tuple[Op, tuple[torch.Tensor, ...]]] = {
    "linear 3d with bias": (F.linear, (normal(2, 5, 8), normal(6, 8), normal(6))),
    "linear bf16": (F.linear, tuple(normal(*s, dtype=torch.bfloat16) for s in ((4, 16), (8, 16), (8,)))),
    "matmul broadcast": (torch.matmul, (normal(3, 1, 4, 5), normal(2, 5, 6))),
    "conv1d": (F.conv1d, (normal(2, 3, 9), normal(4, 3, 3), normal(4))),
    "conv2d strided": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (normal(1, 4, 9, 9), normal(8, 4, 3, 3))),
    "conv2d grouped": (lambda x, w: F.conv2d(x, w, groups=2), (normal(1, 4, 9, 9), normal(8, 2, 3, 3))),
    "conv3d": (F.conv3d, (normal(1, 2, 5, 6, 7), normal(3, 2, 3, 3, 3))),
    "conv transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (normal(1, 4, 5, 5), normal(4, 3, 2, 2))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (64,), w, b), (normal(3, 64), normal(64), normal(64))),
    "rms_norm": (lambda x, w: F.rms_norm(x, (64,), w), (normal(3, 64), normal(64))),
    "group_norm": (lambda x, w: F.group_norm(x, 4, w), (normal(2, 16, 5, 5), normal(16))),
    "batch_norm": (lambda x, m, v: F.batch_norm(x, m, v.abs()), (normal(2, 4, 5), normal(4), normal(4))),
    "softmax": (lambda x: x.softmax(-1), (normal(4, 33),)),
    "sdpa": (F.scaled_dot_product_attention, tuple(normal(2, 4, n, 16) for n in (40, 40, 40))),
    "sdpa causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        tuple(normal(1, 2, 33, 8) for _ in range(3)),
    ),
    "sdpa masked": (F.scaled_dot_product_attention, (*(normal(1, 2, 9, 8) for _ in range(3)), normal(9, 9))),
    "sdpa bf16": (F.scaled_dot_product_attention, tuple(normal(1, 2, 17, 8, dtype=torch.bfloat16) for _ in range(3))),
    "gelu": (F.gelu, (normal(100),)),
    "silu": (F.silu, (normal(100),)),
    "sum": (lambda x: x.sum(0), (normal(1000, 3),)),
    "mean bf16": (lambda x: x.mean(), (normal(1000, dtype=torch.bfloat16),)),
    "std": (lambda x: x.std(-1), (normal(4, 100),)),
    "cumsum": (lambda x: x.cumsum(0), (normal(100),)),
    "topk": (lambda x: x.topk(5), (normal(4, 100),)),
    "sort": (lambda x: x.sort(-1), (normal(4, 100),)),
    "where": (lambda x: torch.where(x > 0, x, 0.0), (normal(100),)),
    "embedding": (F.embedding, (whole(9, 4, 5), normal(9, 16))),
    "index": (lambda x, i: x[i], (normal(9, 4), whole(9, 3))),
    "index put": (lambda x, i: x.clone().index_put_((i,), x[:3], accumulate=True), (normal(9, 4), whole(2, 3))),
    "mask": (lambda x: x[x > 0], (normal(100),)),
    "nonzero": (lambda x: (x > 0).nonzero(), (normal(5, 5),)),
    "unique": (lambda x: x.unique(return_counts=True), (whole(4, 50),)),
    "gather": (lambda x, i: x.gather(1, i), (normal(4, 9), whole(9, 4, 2))),
    "scatter": (lambda x, i: x.scatter_add(1, i, x), (normal(4, 9), whole(9, 4, 9))),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (normal(1, 2, 5, 5),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (normal(1, 2, 6, 6),)),
    "pad": (lambda x: F.pad(x, (1, 2), mode="reflect"), (normal(1, 2, 6),)),
    "fft": (lambda x: torch.fft.rfft2(x).abs(), (normal(8, 8),)),
    "complex rotation": (lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j), (normal(4, 8, 2),)),
    "conjugate": (lambda x: torch.view_as_complex(x).conj() + 1, (normal(4, 8, 2),)),
    "imaginary part of a conjugate": (lambda x: torch.view_as_complex(x).conj().imag + 1, (normal(4, 8, 2),)),
    "rows of a conjugate": (lambda x: torch.view_as_complex(x).conj()[1:].T + 1j, (normal(4, 8, 2),)),
    "view of another type": (lambda x: x.view(torch.int32) ^ 1, (normal(100),)),
    "unfold": (lambda x: x.unfold(0, 3, 2) * 2, (normal(20),)),
    "im2col": (lambda x: F.unfold(x, 3), (normal(1, 2, 6, 6),)),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), (normal(2, 3, 4), normal(2, 5, 4))),
    "foreach": (lambda a, b: torch._foreach_add([a, b], 1.0), (normal(4), normal(5))),
    "foreach in place": (lambda a, b: (torch._foreach_mul_([a, b], 2.0), [a, b])[1], (normal(4), normal(5))),
    "chunk": (lambda x: [part + 1 for part in x.chunk(3)], (normal(7, 2),)),
    "flip and roll": (lambda x: x.flip(0).roll(2, 1), (normal(4, 5),)),
    "addcmul": (torch.addcmul, (normal(4, 5), normal(4, 5), normal(5))),
    "type promotion": (lambda i: i + 0.5, (whole(5, 10),)),
    "fp8 to fp16": (lambda x: x.to(torch.float8_e4m3fn).to(torch.float16), (normal(50),)),
    "quantise": (lambda x: (x * 127).round().clamp(-127, 127).to(torch.int8), (normal(50),)),
    "outer": (torch.outer, (normal(5), normal(6))),
    "inverse": (torch.linalg.inv, (normal(5, 5),)),
    "prod and any": (lambda x: [x.prod(), (x > 2).any(), x.argmax()], (normal(20),)),
}


def tensors(result: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("inference", [False, True], ids=["autograd", "inference"])
def test_an_operator_equals_the_cpus(sim: types.ModuleType, name: str, inference: bool) -> None:
    operator, arguments = OPERATORS[name]
    with torch.inference_mode(inference):
        expected = tensors(operator(*(a.clone() for a in arguments)))
        results = tensors(operator(*(a.to("sim:2") for a in arguments)))
    for result, wanted in zip(results, expected, strict=True):
        assert result.device == torch.device("sim:2")
        assert (result.dtype, result.shape, result.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
        assert torch.equal(result.cpu(), wanted)


def test_a_result_that_is_a_view_shares_its_memory(sim: types.ModuleType) -> None:
    a = torch.zeros(4, 4, device="sim:0")
    used = sim.mem(0).used
    for view in (
        a.T,
        a[1:],
        a.view(16),
        a.unfold(0, 2, 1),
        a.diagonal(),
        a.view(torch.int32),
        a.unbind()[0],
        a.detach(),
    ):
        view.fill_(1)
    assert sim.mem(0).used == used
    assert a.sum().item() == 16


def test_an_operator_in_place_returns_its_argument(sim: types.ModuleType) -> None:
    a = torch.zeros(4, device="sim:0")
    assert a.add_(1) is a
    assert torch.sin(a, out=a) is a
    with torch.inference_mode():
        b = torch.zeros(4, device="sim:0")
        assert torch.ops.aten.fill_.Scalar(b, 2.0) is b  # nothing between Python and the kernel that could put it right


def test_fresh_memory_reads_as_nan(sim: types.ModuleType) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        assert torch.empty(100, dtype=dtype, device="sim:0").isnan().all()
    assert torch.empty(100, dtype=torch.float8_e4m3fn, device="sim:0").float().isnan().all()


def test_poison_can_be_left_out(sim: types.ModuleType) -> None:
    sim.config(poison=False)
    t = torch.empty(40 << 20, dtype=torch.uint8, device="sim:0")  # so large that it comes from the system, as zeros
    assert not t.any().item()


def test_random_numbers_of_a_seed_are_the_cpus(sim: types.ModuleType) -> None:
    for index in range(4):
        torch.manual_seed(11)
        drawn = [torch.randn(9, device=f"sim:{index}"), torch.rand(9, device=f"sim:{index}")]
        torch.manual_seed(11)
        assert all(torch.equal(t.cpu(), e) for t, e in zip(drawn, (torch.randn(9), torch.rand(9)), strict=True))


def test_a_generator_keeps_its_state(sim: types.ModuleType) -> None:
    generator = torch.Generator(device="sim:1").manual_seed(5)
    state = generator.get_state()
    first = torch.randn(9, device="sim:1", generator=generator)
    generator.set_state(state)
    assert torch.equal(torch.randn(9, device="sim:1", generator=generator), first)
    assert generator.initial_seed() == 5
    assert torch.equal(first.cpu(), torch.randn(9, generator=torch.Generator().manual_seed(5)))


def test_gradients_are_the_cpus(sim: types.ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.SiLU(), nn.Mish(), nn.RMSNorm(16), nn.Linear(16, 4))
    x = normal(5, 8)

    def gradients(device: str) -> list[torch.Tensor]:
        model.to(device).zero_grad()
        model(x.to(device)).square().sum().backward()
        return [p.grad.cpu() for p in model.parameters() if p.grad is not None]

    expected = gradients("cpu")
    assert len(expected) == 7
    assert all(torch.equal(a, b) for a, b in zip(gradients("sim:1"), expected, strict=True))


def test_state_survives_saving_and_loading(sim: types.ModuleType) -> None:
    module = nn.Linear(4, 4).to("sim:1")
    state = {name: p.clone() for name, p in module.state_dict().items()}
    other = nn.Linear(4, 4).to("sim:2")
    other.load_state_dict(state)
    assert torch.equal(other.weight.cpu(), module.weight.cpu())
    assert other.weight.device == torch.device("sim:2")


def test_a_copied_module_has_memory_of_its_own(sim: types.ModuleType) -> None:
    module = nn.Linear(16, 16, bias=False).to("sim:1")
    used = sim.mem(1).used
    copied = copy.deepcopy(module)
    assert (sim.mem(0).used, sim.mem(1).used) == (0, 2 * used)
    copied.weight.data.zero_()
    assert module.weight.count_nonzero().item() > 0


def test_a_saved_tensor_comes_back_to_its_device(sim: types.ModuleType) -> None:
    saved = torch.arange(8.0, device="sim:2")
    file = io.BytesIO()
    torch.save({"whole": saved, "part": saved[3:]}, file)
    file.seek(0)
    loaded = torch.load(file)
    assert loaded["whole"].device == loaded["part"].device == torch.device("sim:2")
    assert (loaded["whole"].tolist(), loaded["part"].tolist()) == (saved.tolist(), saved[3:].tolist())
    assert loaded["part"].untyped_storage().data_ptr() == loaded["whole"].untyped_storage().data_ptr()


def test_a_tensor_may_be_set_to_other_memory(sim: types.ModuleType) -> None:
    source = torch.arange(8.0, device="sim:0")
    used = sim.mem(0).used
    whole, storage, part = (torch.empty(0, device="sim:0") for _ in range(3))
    torch.ops.aten.set_.source_Tensor(whole, source)
    storage.set_(source.untyped_storage())
    part.set_(source.untyped_storage(), 2, (3,), (2,))
    assert [t.tolist() for t in (whole, storage, part)] == [source.tolist(), source.tolist(), [2.0, 4.0, 6.0]]
    part.add_(1)
    assert (sim.mem(0).used, source[2].item()) == (used, 3.0)


def test_autocast_runs(sim: types.ModuleType) -> None:
    with torch.autocast("sim", dtype=torch.bfloat16):
        assert (normal(4, 4).to("sim:0") @ normal(4, 4).to("sim:0")).device == torch.device("sim:0")


def test_pinned_memory_is_not_asked_of_a_device(sim: types.ModuleType) -> None:
    with pytest.raises(RuntimeError, match="pinned memory is host memory"):
        torch.empty(2, device="sim:0", pin_memory=True)
