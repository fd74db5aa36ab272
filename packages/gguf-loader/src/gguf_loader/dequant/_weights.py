"""Blocks in, weights out, in chunks that stay in the cache: what every caller of a kernel goes through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from gguf_loader._backend import Backend, uses_triton
from gguf_loader._dtypes import NATIVE_DTYPES
from gguf_loader._errors import GgufPackedError, GgufTypeError
from gguf_loader._scratch import ScratchPool
from gguf_loader._types import GgmlType

from .eager import _basic, _codebook, _device, _iq, _k, _ternary
from .eager._kernel import Kernel
from .eager._lanes import Lanes

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
        **_basic.KERNELS,
        **_k.KERNELS,
        **_codebook.KERNELS,
        **_iq.KERNELS,
        **_ternary.KERNELS,
    }
)

DEVICE_KERNELS: Mapping[str, Kernel] = MappingProxyType({**KERNELS, **_device.KERNELS})
"""What other devices than the CPU run."""


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
    """Write the weights into a contiguous `out` that fits; `dequantize` checks that it does, other callers made it."""
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
        from .triton._launch import dequantize_by_triton

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
