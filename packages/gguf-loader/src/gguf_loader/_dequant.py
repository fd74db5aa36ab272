"""The driver of dequantisation: blocks in, weights out, in chunks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from . import _kernels_basic, _kernels_codebook, _kernels_device, _kernels_iq, _kernels_k, _kernels_ternary
from ._backend import Backend, is_traced, uses_triton
from ._errors import GgufPackedError, GgufTypeError
from ._kernel import Kernel
from ._lanes import Lanes
from ._scratch import ScratchPool
from ._types import NATIVE_DTYPES, GgmlType

CHUNK_WEIGHTS = 1 << 19
"""Weights that a CPU unpacks at a time: enough to hide what an operation costs however small, and few enough that their
float32 form (2 MiB) and the planes of their bits stay in its cache."""

SCALE_WEIGHTS = 1 << 21
"""Weights whose scale tables are made at a time: enough to hide the small operations, few enough to bound memory."""

DEVICE_WEIGHTS = 1 << 25
"""Weights that any other device unpacks at a time, scales and all: there a small operation costs as much as one on
millions of weights. At 5 bytes a weight that is 160 MiB."""

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        **_kernels_basic.KERNELS,
        **_kernels_k.KERNELS,
        **_kernels_codebook.KERNELS,
        **_kernels_iq.KERNELS,
        **_kernels_ternary.KERNELS,
    }
)

DEVICE_KERNELS: Mapping[str, Kernel] = MappingProxyType({**KERNELS, **_kernels_device.KERNELS})
"""What other devices than the CPU run."""


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
            another device to 160 MiB (5 bytes a weight for smaller tensors); Triton needs none.
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
    require_blocks(data, ggml_type, shape)
    if is_traced(data):
        from ._op import dequantize_op

        found: Tensor = dequantize_op(data, ggml_type.id, list(shape), dtype, backend)
        return found if out is None else out.copy_(found)
    if out is None:
        out = torch.empty(tuple(shape), dtype=dtype, device=data.device)
    else:
        _require_fit(out, data, shape, dtype)
    write_weights(data, ggml_type, out, scratch, backend)
    return out


def require_blocks(data: Tensor, ggml_type: GgmlType, shape: Sequence[int]) -> None:
    """Refuse data that are not the packed bytes of so many weights.

    Raises:
        GgufPackedError: they are not 1-D contiguous uint8, or too few or too many.
        GgufTypeError: the shape does not hold whole blocks.
    """
    if data.dtype is not torch.uint8 or data.ndim != 1 or not data.is_contiguous():
        raise GgufPackedError(
            f"packed blocks must be 1-D contiguous uint8, found {data.ndim}-D {data.dtype}",
            remedy="pass the bytes of the tensor as they lie in the file",
        )
    if min(shape, default=0) < 0:
        raise GgufPackedError(f"a shape of {tuple(shape)}", remedy="pass sizes of 0 or more")
    expected_bytes = ggml_type.size_bytes(math.prod(shape))
    if data.numel() != expected_bytes:
        raise GgufPackedError(
            f"{ggml_type.name} weights of shape {tuple(shape)} take {expected_bytes} bytes, found {data.numel()}",
            remedy="pass the logical shape in torch order, and all bytes of the tensor",
        )


def write_weights(
    data: Tensor, ggml_type: GgmlType, out: Tensor, scratch: ScratchPool | None, backend: Backend
) -> None:
    """What `dequantize` does to an `out` that fits: for callers who made it, and ask often."""
    if data.numel() == 0 or data.device.type == "meta":
        return
    native = NATIVE_DTYPES.get(ggml_type.name)
    if native is not None:
        _convert(data, native, out)
        return
    kernel = KERNELS.get(ggml_type.name)
    if kernel is None:
        raise GgufTypeError(
            f"{ggml_type.name} blocks have no conversion to weights",
            remedy="the type is a working format of ggml that no checkpoint should hold; convert the file again",
        )
    if uses_triton(backend, data.device):
        from ._triton import dequantize_by_triton

        dequantize_by_triton(data, ggml_type, out)
        return
    with torch.inference_mode():
        pool = ScratchPool() if scratch is None else scratch
        lanes = Lanes(pool.scratch(), data.device)
        blocks, weights = data.view(-1, ggml_type.type_size), out.view(-1, ggml_type.block_size)
        if data.device.type == "cpu":
            _run(kernel, blocks, weights, lanes)
        else:
            _run_on_device(DEVICE_KERNELS[ggml_type.name], blocks, weights, lanes)


def _require_fit(out: Tensor, data: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    fits = out.dtype == dtype and out.shape == tuple(shape) and out.device == data.device
    if not fits or not out.is_contiguous():
        found = f"{out.dtype} of shape {tuple(out.shape)} on {out.device}"
        wanted = f"{dtype} of shape {tuple(shape)} on {data.device}"
        raise GgufPackedError(
            f"out is {found}, the weights are {wanted}", field="out", remedy="pass a contiguous tensor that fits"
        )


def _convert(data: Tensor, native: torch.dtype, out: Tensor) -> None:
    if data.storage_offset() % native.itemsize:
        data = data.clone()
    with torch.no_grad():
        out.copy_(data.view(native).view(out.shape))


def _run(kernel: Kernel, blocks: Tensor, out: Tensor, lanes: Lanes) -> None:
    block_size = out.shape[1]
    per_chunk, per_scales = max(1, CHUNK_WEIGHTS // block_size), max(1, SCALE_WEIGHTS // block_size)
    for first in range(0, blocks.shape[0], per_scales):
        some = _aligned(blocks[first : first + per_scales], lanes)
        scales = [table.view(some.shape[0], -1) for table in kernel.scales(some, lanes)]
        for start in range(0, some.shape[0], per_chunk):
            chunk = some[start : start + per_chunk]
            target = out[first + start :][: chunk.shape[0]]
            # A CPU rounds a whole chunk faster than one number after the other.
            direct = out.dtype == torch.float32
            weights = target if direct else lanes.take("weights", tuple(target.shape), torch.float32)
            kernel.weights(chunk, weights, lanes, *(table[start : start + per_chunk] for table in scales))
            if not direct:
                target.copy_(weights)


def _run_on_device(kernel: Kernel, blocks: Tensor, out: Tensor, lanes: Lanes) -> None:
    per_chunk = max(1, DEVICE_WEIGHTS // out.shape[1])
    for first in range(0, blocks.shape[0], per_chunk):
        chunk = _aligned(blocks[first : first + per_chunk], lanes)
        kernel.weights(chunk, out[first : first + per_chunk], lanes, *kernel.scales(chunk, lanes))


def _aligned(blocks: Tensor, lanes: Lanes) -> Tensor:
    """The blocks themselves, or a copy where they start at an address that wide lanes cannot be read from."""
    return blocks if blocks.storage_offset() % 8 == 0 else lanes.gather("blocks", blocks)
