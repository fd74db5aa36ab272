"""Decoding as a torch operator: what torch.compile sees as one opaque node."""

from __future__ import annotations

import torch
from torch import Tensor

from device_placement.packed._backend import decode_with
from device_placement.packed._format import Layout


# Torch 2.6 cannot read list[int] from the signature.
@torch.library.custom_op(
    "device_placement::decode_w3",
    mutates_args=(),
    schema="(Tensor packed, int[] shape, int base, int escapes) -> Tensor",
)
def decode_op(packed: Tensor, shape: list[int], base: int, escapes: int) -> Tensor:
    """Weights of a packed buffer; see `decode_with`."""
    return decode_with(packed, Layout(shape=tuple(shape), base=base, escapes=escapes))


@decode_op.register_fake
def _(packed: Tensor, shape: list[int], base: int, escapes: int) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bfloat16)
