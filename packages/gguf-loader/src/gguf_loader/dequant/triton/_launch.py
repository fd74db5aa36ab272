"""Dequantisation by Triton: one kernel launch, no working memory, every byte moved once.

The only module that imports Triton, which comes with torch for NVIDIA, AMD and Intel GPUs and not otherwise; it is
imported when blocks on such a device are first dequantised.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gguf_loader._types import GgmlType
from gguf_loader.dequant.eager import _codebook as codebook
from gguf_loader.dequant.eager import _iq as iq

from . import _basic as basic
from . import _iq as grids
from . import _k as k
from ._kernel import ROWS, RUN, dequantize_kernel


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the kernel needs for one type.

    Attributes:
        function: the decoding function.
        table: makes the table that it reads; None if it reads none.
    """

    function: Any
    table: Callable[[], Tensor] | None = None


def _iq4_table() -> Tensor:
    return torch.tensor(codebook.IQ4_VALUES, dtype=torch.int8)


def _e2m1_table() -> Tensor:
    return torch.tensor(codebook.E2M1_DOUBLED, dtype=torch.int8)


@functools.cache
def _table_on(make: Callable[[], Tensor], device: torch.device) -> Tensor:
    # Kept for good, 1.3 MiB a device if every type is met: a compiled graph has no working memory to keep it in, and
    # copying it in every call would make the host wait for the device.
    return make().view(torch.uint8).to(device)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever device its arguments are on."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "Q1_0": Decoder(basic.q1_0),
        "Q2_0": Decoder(basic.q2_0),
        "Q4_0": Decoder(basic.q4_0),
        "Q4_1": Decoder(basic.q4_1),
        "Q5_0": Decoder(basic.q5_0),
        "Q5_1": Decoder(basic.q5_1),
        "Q8_0": Decoder(basic.q8_0),
        "Q2_K": Decoder(k.q2_k),
        "Q3_K": Decoder(k.q3_k),
        "Q4_K": Decoder(k.q4_k),
        "Q5_K": Decoder(k.q5_k),
        "Q6_K": Decoder(k.q6_k),
        "IQ1_S": Decoder(grids.iq1_s, iq.iq1_table),
        "IQ1_M": Decoder(grids.iq1_m, iq.iq1_table),
        "IQ2_XXS": Decoder(grids.iq2_xxs, iq.iq2_xxs_table),
        "IQ2_XS": Decoder(grids.iq2_xs, iq.iq2_xs_table),
        "IQ2_S": Decoder(grids.iq2_s, iq.iq2_s_table),
        "IQ3_XXS": Decoder(grids.iq3_xxs, iq.iq3_xxs_table),
        "IQ3_S": Decoder(grids.iq3_s, iq.iq3_s_table),
        "IQ4_NL": Decoder(basic.iq4_nl, _iq4_table),
        "IQ4_XS": Decoder(basic.iq4_xs, _iq4_table),
        "TQ1_0": Decoder(basic.tq1_0),
        "TQ2_0": Decoder(basic.tq2_0),
        "MXFP4": Decoder(basic.mxfp4, _e2m1_table),
        "NVFP4": Decoder(basic.nvfp4, _e2m1_table),
    }
)
"""How each block type is decoded; every type that eager torch has a kernel for."""


def dequantize_by_triton(data: Tensor, kind: GgmlType, out: Tensor) -> None:
    """Write the weights of `data` into `out`.

    Args:
        data: 1-D uint8 blocks, at any address.
        kind: their type.
        out: contiguous floating tensor of as many weights, on the same device.
    """
    decoder = DECODERS[kind.name]
    table = data if decoder.table is None else _table_on(decoder.table, data.device)
    count, rows = out.numel() // RUN.value, ROWS.value
    with _current(data.device):
        dequantize_kernel[((count + rows - 1) // rows,)](
            data,
            out,
            table,
            count,
            TYPE_SIZE=kind.type_size,
            RUNS=kind.block_size // RUN.value,
            DECODE=decoder.function,
        )
