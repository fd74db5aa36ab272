"""Probes of small models for the tests of derived plans: factories that a command line can name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from seq_core_models import DIM, Head, Image, Video, VideoBlock, filled, image_inputs, random, video_inputs
from torch import Tensor, nn

Call = tuple[nn.Module, Mapping[str, Any]]

IMAGE_TOKENS = (11, 17, 26, 38)
TEXT_TOKENS = (5, 6, 8, 11)


def video(step: int) -> Call:
    """One stream, one row of modulation for all."""
    return filled(Video()), {**video_inputs(tokens=IMAGE_TOKENS[step]), "context": random(1, TEXT_TOKENS[step], DIM)}


def video_with_rows(step: int) -> Call:
    """Modulation with a row a frame of four tokens, and a mask."""
    frames = (3, 5, 7, 8)[step]
    return filled(Video()), video_inputs(tokens=4 * frames, rows=frames, mask=True)


def image(step: int) -> Call:
    """Two lists of blocks, two streams, concatenated positions."""
    return filled(Image()), image_inputs(img=IMAGE_TOKENS[step], txt=TEXT_TOKENS[step])


class BranchingBlock(VideoBlock):
    """Does something else for long inputs."""

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        count = x.shape[1]
        out = super().forward(x, pe, e, context, mask)
        return out * 2 if count > 1000 else out


def branching(step: int) -> Call:
    """No probe comes near the length at which it differs."""
    model = Video()
    model.blocks = nn.ModuleList(BranchingBlock(3) for _ in range(2))
    return filled(model), video_inputs(tokens=IMAGE_TOKENS[step])


class MixingBlock(VideoBlock):
    """Mixes tokens outside of its attention."""

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, pe, e, context, mask) + x.cumsum(1)


def mixing(step: int) -> Call:
    """Cannot be cut anywhere."""
    model = Video()
    model.blocks = nn.ModuleList(MixingBlock(3) for _ in range(2))
    return filled(model), video_inputs(tokens=IMAGE_TOKENS[step])


class Between(Video):
    """Mixes tokens between its blocks: they must be whole there."""

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, pe, e=e, context=context, mask=mask)
            x = x + x.mean(1, keepdim=True)
        out: Tensor = self.head(x)
        return out


def between(step: int) -> Call:
    """Needs scope "block"."""
    return filled(Between()), video_inputs(tokens=IMAGE_TOKENS[step])


class Counted(nn.Module):
    """A block that changes its first tokens, whose number is a Python integer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = VideoBlock(3)

    def forward(self, x: Tensor, first: int, e: Tensor, context: Tensor, layer: int) -> Tensor:
        out: Tensor = self.inner(x, torch.zeros(1, x.shape[1], 1, DIM // 3), e, context)
        out[:, :first] *= 1.5
        return out + layer


class Counting(nn.Module):
    """Hands numbers of tokens to its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Counted() for _ in range(2))
        self.head = Head()

    def forward(self, x: Tensor, first: int) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x, first, random(1, 1, DIM, seed=3), random(1, 5, DIM), layer=place)
        out: Tensor = self.head(x)
        return out


def counting(step: int) -> Call:
    """Positions as Python integers; a number that differs from block to block."""
    return filled(Counting()), {"x": random(1, IMAGE_TOKENS[step], DIM), "first": (4, 7, 8, 13)[step]}


class PerFrame:
    """One row a frame, as LTX keeps them."""

    __slots__ = ("batch_size", "data", "feature_dim", "num_frames", "patches_per_frame")

    def __init__(self, data: Tensor, patches_per_frame: int, per_frame: bool = True) -> None:
        assert per_frame
        self.batch_size, self.num_frames, self.feature_dim = data.shape
        self.data, self.patches_per_frame = data, patches_per_frame

    def expand(self) -> Tensor:
        return self.data.repeat_interleave(self.patches_per_frame, 1)

    def expand_for_computation(
        self, scale_shift_table: Tensor, batch_size: int, indices: slice = slice(None)
    ) -> tuple[Tensor, ...]:
        rows = self.data.reshape(batch_size, self.num_frames, scale_shift_table.shape[0], -1)[:, :, indices]
        values = (scale_shift_table[indices][None, None] + rows).unbind(2)
        return tuple(value.repeat_interleave(self.patches_per_frame, 1) for value in values)


class Framed(Video):
    """Hands its modulation to its blocks with one row a frame, and they expand it."""

    class Block(VideoBlock):
        """Expands the rows."""

        def forward(self, x: Tensor, pe: Tensor, e: Any, context: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(x, pe, e.expand(), context, mask)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(3) for _ in range(2))


def framed(step: int) -> Call:
    """Compressed rows, and a dense mask over all tokens."""
    frames = (3, 5, 7, 8)[step]
    inputs = video_inputs(tokens=4 * frames, mask=True)
    return filled(Framed()), {**inputs, "e": PerFrame(random(1, frames, DIM, seed=3), 4)}


class Nested(Video):
    """Its blocks return tuples inside of tuples."""

    class Block(VideoBlock):
        """Returns its result twice."""

        def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Any:
            return (super().forward(x, pe, e, context, mask), (x, x))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(3) for _ in range(2))

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x, _ = block(x, pe, e=e, context=context, mask=mask)
        out: Tensor = self.head(x)
        return out


def nested(step: int) -> Call:
    """Results that no plan describes."""
    return filled(Nested()), video_inputs(tokens=IMAGE_TOKENS[step])


class Alternating(nn.Module):
    """Two lists of blocks that take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.odd = (nn.ModuleList(VideoBlock(3) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor) -> Tensor:
        for even, odd in zip(self.even, self.odd, strict=True):
            x = odd(even(x, pe, e, context), pe, e, context)
        return x.cumsum(1)


def alternating(step: int) -> Call:
    """One region of two lists."""
    inputs = video_inputs(tokens=IMAGE_TOKENS[step])
    return filled(Alternating()), {name: value for name, value in inputs.items() if name != "mask"}


def unsteady(step: int) -> Call:
    """Another result each time."""
    return filled(Video()), {**video_inputs(tokens=IMAGE_TOKENS[step]), "x": torch.randn(1, IMAGE_TOKENS[step], DIM)}


def linear(step: int) -> Call:
    """Nothing to cut."""
    return filled(nn.Linear(2, 2)), {"input": torch.ones(1, 2)}


def diffusers_flux(step: int) -> Call:
    """A tiny Flux of diffusers."""
    from diffusers import FluxTransformer2DModel

    model = filled(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=20,
            pooled_projection_dim=12,
            axes_dims_rope=(4, 4, 8),
        )
    )
    img, txt = IMAGE_TOKENS[step], TEXT_TOKENS[step]
    return model, {
        "hidden_states": random(1, img, 4),
        "encoder_hidden_states": random(1, txt, 20),
        "pooled_projections": random(1, 12),
        "timestep": torch.tensor([0.6]),
        "img_ids": torch.arange(3.0 * img).view(img, 3),
        "txt_ids": torch.zeros(txt, 3),
        "return_dict": False,
    }
