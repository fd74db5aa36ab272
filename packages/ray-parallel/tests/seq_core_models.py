"""Small models of our own with every shape of block that plans describe, and the plans for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_parallel.sequence import Attn, Control, Plan, Region, Rows, Seq

DIM = 24
torch.set_num_threads(1)  # ranks are threads here; more threads inside each would only fight for the cores


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights, the same for the same seed, without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = 0.7 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
        parameter.requires_grad_(False)
    return model.eval()


def random(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers, the same for the same arguments."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, S, H * D] -> [B, S, H, D]."""
    return x.view(*x.shape[:2], heads, -1)


def turned(x: Tensor, pe: Tensor) -> Tensor:
    """Something like a rotary embedding: [B, S, H, D] times [1, S, 1, D]."""
    return x * pe.cos() + x.flip(-1) * pe.sin()


class Attention(nn.Module):
    """Self- or cross-attention through torch's scaled_dot_product_attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None, pe: Tensor | None = None, mask: Any = None) -> Tensor:
        other = x if context is None else context
        q, k, v = (heads_of(f(t), self.heads) for f, t in ((self.q, x), (self.k, other), (self.v, other)))
        if pe is not None:
            q, k = turned(q, pe), turned(k, pe)
        out = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2).flatten(2)
        projected: Tensor = self.out(out)
        return projected

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The call that is caught."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class VideoBlock(nn.Module):
    """One stream: self-attention, cross-attention to a text, a feed-forward modulated by rows."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn, self.ff = Attention(heads), Attention(heads), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(x, pe=pe, mask=mask)
        x = x + self.cross_attn(x, context)
        rows = -(-x.shape[1] // e.shape[1])
        modulated: Tensor = self.ff(x) * e.repeat_interleave(rows, 1)[:, : x.shape[1]]
        return x + modulated


class Head(nn.Module):
    """What comes after the blocks; it mixes all tokens, so it must see them all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.linear(x) + x.mean(1, keepdim=True)
        return mixed


class Video(nn.Module):
    """Like Wan: one list of blocks, then a head."""

    def __init__(self, heads: int = 3, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VideoBlock(heads) for _ in range(depth))
        self.head = Head()

    def forward(self, x: Tensor, pe: Tensor, e: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, pe, e=e, context=context, mask=mask)
        out: Tensor = self.head(x)
        return out


VIDEO = Plan(
    regions=[
        Region(
            blocks="blocks",
            args={"x": Seq("v"), "pe": Seq("v"), "e": Rows("v")},
            whole=("context", "mask"),
            out=Seq("v"),
            attn={"self_attn": Attn("v", "v"), "cross_attn": Attn("v")},
            exit=("head", "x"),
        )
    ]
)


def video_inputs(tokens: int = 13, rows: int = 1, mask: bool = False, batch: int = 1) -> dict[str, Any]:
    """Arguments of `Video`."""
    kept = random(1, 1, tokens, tokens, seed=8) > -0.5
    return {
        "x": random(batch, tokens, DIM),
        "pe": random(1, tokens, 1, DIM // 3, seed=2),
        "e": random(batch, rows, DIM, seed=3),
        "context": random(batch, 5, DIM, seed=4),
        "mask": kept if mask else None,
    }


class DoubleBlock(nn.Module):
    """Two streams with weights of their own and one attention; writes into what it was given."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.txt, self.img, self.txt_out, self.img_out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, img: Tensor, txt: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        x = heads_of(torch.cat([self.txt(txt), self.img(img)], 1), self.heads)
        q = turned(x, pe).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, q.flip(-1), x.transpose(1, 2)).transpose(1, 2).flatten(2)
        txt += self.txt_out(out[:, : txt.shape[1]])
        img += self.img_out(out[:, txt.shape[1] :])
        return img, txt


class SingleBlock(nn.Module):
    """One stream of text and image together."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attn = Attention(heads)

    def forward(self, x: Tensor, pe: Tensor) -> Tensor:
        attended: Tensor = self.attn(x, pe=pe)
        return x + attended


class Image(nn.Module):
    """Like Flux: double blocks, then single blocks over the concatenation, with residuals from outside."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList(DoubleBlock(heads) for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleBlock(heads) for _ in range(2))

    def forward(self, img: Tensor, txt: Tensor, pe: Tensor, control: dict[str, Any] | None = None) -> Tensor:
        control = control or {}
        img, txt = img.clone(), txt.clone()
        for place, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, pe=pe)
            residual = _entry(control, "double", place)
            if residual is not None:
                img[:, : residual.shape[1]] += residual
        x, start = torch.cat([txt, img], 1), txt.shape[1]
        for place, block in enumerate(self.single_blocks):
            x = block(x, pe)
            residual = _entry(control, "single", place)
            if residual is not None:
                x[:, start : start + residual.shape[1]] += residual
        return x[:, start:]


def _entry(control: dict[str, Any], key: str, place: int) -> Tensor | None:
    entries = control.get(key, [])
    entry: Tensor | None = entries[place] if place < len(entries) else None
    return entry


_BOTH = ("txt", "img")
IMAGE = Plan(
    regions=[
        Region(
            blocks="double_blocks",
            args={"img": Seq("img"), "txt": Seq("txt"), "pe": Seq(_BOTH)},
            out=(Seq("img"), Seq("txt")),
            attn={"": Attn(_BOTH, _BOTH)},
        ),
        Region(
            blocks="single_blocks",
            args={"x": Seq("all"), "pe": Seq("all")},
            out=Seq("all"),
            attn={"attn": Attn("all", "all")},
        ),
    ],
    control=[
        Control(key="double", blocks="double_blocks", stream="img", out=0),
        Control(key="single", blocks="single_blocks", stream="all", after="txt"),
    ],
)


def image_inputs(img: int = 11, txt: int = 5, heads: int = 4, control: bool = False) -> dict[str, Any]:
    """Arguments of `Image`."""
    residuals = {
        "double": [random(1, img, DIM, seed=5), None],
        "single": [random(1, img - 2, DIM, seed=6), random(1, img, DIM, seed=7)],
    }
    return {
        "img": random(1, img, DIM),
        "txt": random(1, txt, DIM, seed=2),
        "pe": random(1, img + txt, 1, DIM // heads, seed=3),
        "control": residuals if control else None,
    }
