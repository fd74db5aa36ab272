"""Encode and decode w3 in plain torch, on whatever device the tensor is, a stretch of blocks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from device_placement.packed._errors import PackedError
from device_placement.packed._format import BLOCK, ESCAPE, Layout, Planes, codes_of, packed_size, stretches


def encode(dense: Tensor) -> tuple[Tensor, Layout] | None:
    """Pack a bf16 tensor without loss.

    Two passes: the first counts exponents, which gives the window and the exact size; the second writes. Besides the
    result it holds a few bytes for each weight of one stretch of blocks.

    Args:
        dense: bf16, any shape; a copy is made of one that is not contiguous.

    Returns:
        the buffer (1-D uint8, on the device of `dense`) and its layout; None where packing does not make it smaller:
        then the tensor stays dense.

    Raises:
        PackedError: the tensor is not bf16.
    """
    if dense.dtype != torch.bfloat16:
        raise PackedError(f"only bfloat16 is packed, not {dense.dtype}; leave the tensor dense")
    shape = tuple(dense.shape)
    raw = dense.detach().reshape(-1).view(torch.int16)
    histogram = _histogram(raw)
    base, inside = _best_window(histogram)
    escapes = raw.numel() - inside
    if packed_size(shape, escapes) >= 2 * raw.numel():
        return None
    layout = Layout(shape=shape, base=base, escapes=escapes)
    # The gaps between the planes are part of what is stored, copied and summed up: no arbitrary memory in them.
    buffer = torch.zeros(layout.size_bytes, dtype=torch.uint8, device=dense.device)
    _write(raw, layout, layout.cut(buffer))
    return buffer, layout


def decode(buffer: Tensor, layout: Layout, out: Tensor | None = None) -> Tensor:
    """The weights of a buffer, bit for bit those that were packed.

    Args:
        buffer: what `encode` made, on any device.
        layout: the same.
        out: contiguous bf16 of the layout's shape, on the device of the buffer; fresh when not given.

    Raises:
        DamagedPackError: the buffer does not have the size that the layout asks for.
        PackedError: `out` does not fit.
    """
    out = output_for(buffer, layout, out)
    planes = layout.cut(buffer)
    weights = out.view(-1).view(torch.int16)
    for blocks in stretches(layout.blocks, buffer.device):
        _decode_blocks(planes, layout, blocks, weights)
    return out


def output_for(buffer: Tensor, layout: Layout, out: Tensor | None) -> Tensor:
    """`out`, checked, or a fresh tensor for the weights."""
    if out is None:
        return torch.empty(layout.shape, dtype=torch.bfloat16, device=buffer.device)
    fits = out.dtype == torch.bfloat16 and tuple(out.shape) == layout.shape and out.device == buffer.device
    if not fits or not out.is_contiguous():
        raise PackedError(
            f"packed weights of shape {layout.shape} on {buffer.device} cannot be decoded into {out.dtype} of shape "
            f"{tuple(out.shape)} on {out.device}; pass a contiguous bfloat16 tensor of the same shape and device"
        )
    return out


def _histogram(raw: Tensor) -> Tensor:
    """How often each of the 256 exponents occurs; int64 on the CPU."""
    total = torch.zeros(256, dtype=torch.int64)
    for blocks in stretches(-(-raw.numel() // BLOCK), raw.device):
        total += torch.bincount(_exponents(raw[_weights(blocks)]), minlength=256).cpu()
    return total


def _best_window(histogram: Tensor) -> tuple[int, int]:
    """The first exponent of the window of seven that holds most weights, and how many it holds."""
    ends = torch.cat([histogram.new_zeros(1), histogram.cumsum(0)])
    inside = ends[ESCAPE:] - ends[:-ESCAPE]
    base = int(inside.argmax())
    return base, int(inside[base])


def _exponents(raw: Tensor) -> Tensor:
    return ((raw >> 7) & 0xFF).to(torch.uint8)


def _weights(blocks: slice) -> slice:
    return slice(blocks.start * BLOCK, blocks.stop * BLOCK)


def _write(raw: Tensor, layout: Layout, planes: Planes) -> None:
    written = 0
    for blocks in stretches(layout.blocks, raw.device):
        some = raw[_weights(blocks)]
        planes.rest[_weights(blocks)] = (((some >> 8) & 0x80) | (some & 0x7F)).to(torch.uint8)
        code = _exponents(some) - layout.base  # uint8 wraps round: what is below the window becomes large
        missing = -code.numel() % BLOCK
        if missing:
            code = torch.cat([code, code.new_zeros(missing)])
        outside = code >= ESCAPE
        escapes = (code[outside] + layout.base).view(-1)
        planes.escapes[written : written + escapes.numel()] = escapes
        counts = outside.view(-1, BLOCK).sum(1, dtype=torch.int32)
        planes.starts[blocks] = counts.cumsum(0, dtype=torch.int32) - counts + written
        written += escapes.numel()
        code.masked_fill_(outside, ESCAPE)
        four = (code & 3).view(torch.int32)
        four = four | (four >> 6)
        planes.low[blocks.start * BLOCK // 4 : blocks.stop * BLOCK // 4] = ((four | (four >> 12)) & 0xFF).to(
            torch.uint8
        )
        eight = (code >> 2).view(torch.int64)
        eight = eight | (eight >> 7)
        eight = eight | (eight >> 14)
        planes.high[blocks.start * BLOCK // 8 : blocks.stop * BLOCK // 8] = ((eight | (eight >> 28)) & 0xFF).to(
            torch.uint8
        )


def _decode_blocks(planes: Planes, layout: Layout, blocks: slice, weights: Tensor) -> None:
    code = codes_of(planes, blocks)
    exponent = code + layout.base
    if layout.escapes:
        # Where the escapes of a stretch begin is read back from the device only if there is more than one stretch.
        first = int(planes.starts[blocks.start]) if blocks.start else 0
        exponent.masked_scatter_(code == ESCAPE, planes.escapes[first:])
    here = weights[_weights(blocks)]
    rest = planes.rest[_weights(blocks)].to(torch.int16)
    torch.bitwise_left_shift(exponent[: here.numel()].to(torch.int16), 7, out=here)
    here |= rest & 0x7F
    here |= (rest & 0x80) << 8
