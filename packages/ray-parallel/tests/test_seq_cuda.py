"""The kinds of attention on a GPU: ranks as threads of one device, fused kernels with their log-sum-exp."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from seq_core_models import IMAGE, Image, filled, image_inputs
from torch import Tensor

from ray_parallel.sequence import Kind, ThreadComm, parallelize, run_threads
from ray_parallel.sequence.running._softmax import partial_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]


@pytest.mark.parametrize("dim", [64, 12])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_log_sum_exp_merges_to_the_whole(dim: int, dtype: torch.dtype, near: float, masked: bool) -> None:
    q, k, v = (torch.randn(2, 3, 333, dim, device="cuda", dtype=dtype) for _ in range(3))
    mask = torch.rand(1, 1, 333, 333, device="cuda") > 0.3 if masked else None
    want = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    parts = [
        partial_attention(q, k[:, :, part], v[:, :, part], None if mask is None else mask[..., part])
        for part in (slice(0, 100), slice(100, 333))
    ]
    merged = parts[0].merge(parts[1])
    assert merged.lse.shape == (2, 3, 333)
    torch.testing.assert_close(merged.out, want, rtol=0, atol=near * want.abs().max().item())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_model_on_the_device(kind: Kind) -> None:
    def moved(value: Tensor) -> Tensor:
        return value.cuda()

    inputs = {name: moved(value) for name, value in image_inputs().items() if isinstance(value, Tensor)}

    def rank(comm: ThreadComm) -> Tensor:
        model = filled(Image()).cuda()
        ulysses = 2 if kind == "usp" else None
        with torch.no_grad(), parallelize(model, IMAGE, comm, kind=kind, ulysses=ulysses):
            out: Tensor = model(**{name: value.clone() for name, value in inputs.items()})
        return out

    with torch.no_grad():
        want = filled(Image()).cuda()(**inputs)
    for out in run_threads(4, rank):
        torch.testing.assert_close(out, want, rtol=0, atol=2e-6 * want.abs().max().item())
