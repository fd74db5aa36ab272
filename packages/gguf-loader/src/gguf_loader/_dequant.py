"""The driver of dequantisation: blocks in, weights out, in chunks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from . import _kernels_basic, _kernels_codebook, _kernels_iq, _kernels_k, _kernels_ternary
from ._backend import Backend, uses_triton
from ._errors import GgufPackedError, GgufTypeError
from ._kernel import Kernel
from ._lanes import Lanes
from ._scratch import ScratchPool
from ._types import GgmlType

CHUNK_WEIGHTS = 1 << 19
"""Weights that a CPU unpacks at a time: enough to hide what an operation costs however small, and few enough that their
float32 form (2 MiB) and the planes of their bits stay in its cache."""

SCALE_WEIGHTS = 1 << 21
"""Weights whose scale tables are made at a time: enough to hide the small operations, few enough to bound memory."""

DEVICE_WEIGHTS = 1 << 24
"""Weights that any other device unpacks at a time, scales and all: there a small operation costs as much as one on
millions of weights. At 9 bytes a weight that is 144 MiB."""

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        **_kernels_basic.KERNELS,
        **_kernels_k.KERNELS,
        **_kernels_codebook.KERNELS,
        **_kernels_iq.KERNELS,
        **_kernels_ternary.KERNELS,
    }
)

NATIVE_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I8": torch.int8,
        "I16": torch.int16,
        "I32": torch.int32,
        "I64": torch.int64,
    }
)
"""ggml types that are a torch dtype."""


def dequantize(
    data: Tensor,
    ggml_type: GgmlType,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    scratch: ScratchPool | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The weights of packed blocks, bit for bit those of ggml's own conversion to float32.

    Another dtype than float32 is that result, rounded once to the nearest, ties to even.

    Args:
        data: 1-D contiguous uint8 blocks on any device.
        ggml_type: type of the blocks.
        shape: shape of the result.
        dtype: dtype of the result.
        out: contiguous tensor of that shape and dtype, on the device of `data`, to write to.
        scratch: working memory to reuse; fresh for this call when not given. On the CPU it grows to 7 MiB a thread, on
            another device to 80 MiB (5 bytes a weight for smaller tensors), where a call takes up to 64 MiB more for
            its time; Triton needs none.
        backend: `auto`, `eager` (torch operations, on any device) or `triton`.

    Returns:
        `out`, or a fresh tensor.

    Raises:
        GgufTypeError: the type has no conversion to float32 (Q8_1 and Q8_K, which exist between two operations only),
            or the shape does not hold whole blocks.
        GgufPackedError: data or out do not fit, or Triton is demanded where it cannot work.

    >>> from ._types import type_by_name
    >>> blocks = torch.tensor([0, 0x3C, *range(16)], dtype=torch.uint8)  # scale 1.0, nibbles 0..15 and 0
    >>> dequantize(blocks, type_by_name("Q4_0"), (2, 16))[0, :4]
    tensor([-8., -7., -6., -5.])
    """
    expected_bytes = ggml_type.size_bytes(math.prod(shape))
    if data.numel() != expected_bytes:
        raise GgufPackedError(
            f"{ggml_type.name} weights of shape {tuple(shape)} take {expected_bytes} bytes, found {data.numel()}",
            remedy="pass the logical shape in torch order, and all bytes of the tensor",
        )
    if torch.compiler.is_compiling():
        from ._op import dequantize_op

        found: Tensor = dequantize_op(data, ggml_type.id, list(shape), dtype, backend)
        return found if out is None else out.copy_(found)
    native, kernel = NATIVE_DTYPES.get(ggml_type.name), KERNELS.get(ggml_type.name)
    if out is None:
        out = torch.empty(tuple(shape), dtype=dtype, device=data.device)
    else:
        _require_fit(out, data, shape, dtype)
    if data.numel() == 0 or data.device.type == "meta":
        return out
    if native is not None:
        return _convert(data, native, out)
    if kernel is None:
        raise GgufTypeError(
            f"{ggml_type.name} blocks have no conversion to weights",
            remedy="the type is a working format of ggml that no checkpoint should hold; convert the file again",
        )
    if uses_triton(backend, data.device):
        from ._triton import dequantize_by_triton

        dequantize_by_triton(data, ggml_type, out)
        return out
    with torch.inference_mode():
        pool = ScratchPool() if scratch is None else scratch
        _run(kernel, data.view(-1, ggml_type.type_size), ggml_type.block_size, out.view(-1), pool)
    return out


def _require_fit(out: Tensor, data: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    fits = out.dtype == dtype and out.shape == tuple(shape) and out.device == data.device
    if not fits or not out.is_contiguous():
        found = f"{out.dtype} of shape {tuple(out.shape)} on {out.device}"
        wanted = f"{dtype} of shape {tuple(shape)} on {data.device}"
        raise GgufPackedError(
            f"out is {found}, the weights are {wanted}", field="out", remedy="pass a contiguous tensor that fits"
        )


def _convert(data: Tensor, native: torch.dtype, out: Tensor) -> Tensor:
    if data.storage_offset() % native.itemsize:
        data = data.clone()
    with torch.no_grad():
        return out.copy_(data.view(native).view(out.shape))


def _run(kernel: Kernel, blocks: Tensor, block_size: int, out: Tensor, pool: ScratchPool) -> None:
    lanes = Lanes(pool.scratch(), blocks.device)
    count = blocks.shape[0]
    on_cpu = blocks.device.type == "cpu"
    per_chunk, per_scales = (CHUNK_WEIGHTS, SCALE_WEIGHTS) if on_cpu else (DEVICE_WEIGHTS, DEVICE_WEIGHTS)
    per_chunk, per_scales = max(1, per_chunk // block_size), max(1, per_scales // block_size)
    for first in range(0, count, per_scales):
        some = _aligned(blocks[first : first + per_scales], lanes)
        scales = [table.view(some.shape[0], -1) for table in kernel.scales(some, lanes)]
        for start in range(0, some.shape[0], per_chunk):
            chunk = some[start : start + per_chunk]
            target = out[(first + start) * block_size :][: chunk.shape[0] * block_size]
            # A CPU rounds a whole chunk faster than one number after the other; elsewhere it costs another pass.
            direct = out.dtype == torch.float32 or not on_cpu
            weights = target if direct else lanes.take("weights", (target.shape[0],), torch.float32)
            weights = weights.view(-1, block_size)
            kernel.weights(chunk, weights, lanes, *(table[start : start + per_chunk] for table in scales))
            if not direct:
                target.copy_(weights.view(-1))


def _aligned(blocks: Tensor, lanes: Lanes) -> Tensor:
    """The blocks themselves, or a copy where they start at an address that wide lanes cannot be read from."""
    return blocks if blocks.storage_offset() % 8 == 0 else lanes.gather("blocks", blocks)
