"""The demo's model: a small diffusion transformer, its checkpoint and its sampler.

The architecture is DiT with adaptive layer norm (Peebles and Xie, "Scalable Diffusion Models with Transformers",
2023), sampled by Euler steps along a rectified flow (Liu et al., 2022). The weights are random: the demo is about where
bytes live and what they compute, and random weights give every layer a say in the output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG_KEY = "torchspan.demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Shape of the demo model.

    Attributes:
        blocks: transformer blocks.
        width: channels of the residual stream, a multiple of `heads`.
        heads: attention heads.
        image_size: height and width of the latent, a multiple of `patch_size`.
        channels: latent channels.
        patch_size: side of a patch; a patch is one token.
        classes: labels that the model is conditioned on.
    """

    blocks: int = 16
    width: int = 320
    heads: int = 5
    image_size: int = 32
    channels: int = 4
    patch_size: int = 2
    classes: int = 10

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a model of {self.blocks} blocks has nothing to place; use at least 1")
        if self.width % self.heads or self.image_size % self.patch_size:
            raise ValueError(
                f"width {self.width} must be a multiple of heads {self.heads}, "
                f"and image_size {self.image_size} of patch_size {self.patch_size}"
            )

    @property
    def tokens(self) -> int:
        """Patches of one latent."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one latent, [1, channels, image_size, image_size]."""
        return (1, self.channels, self.image_size, self.image_size)


class DemoBlock(nn.Module):
    """One transformer block: attention and a two-layer network, both shifted, scaled and gated by the conditioning."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x_btc: torch.Tensor, cond_bc: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after this block; shapes [B, T, C] and [B, C] -> [B, T, C]."""
        modulation: torch.Tensor = self.modulation(nn.functional.silu(cond_bc)).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x_btc = x_btc + gate1 * self._attention(self.norm1(x_btc) * (1 + scale1) + shift1)
        hidden = nn.functional.gelu(self.fc1(self.norm2(x_btc) * (1 + scale2) + shift2), approximate="tanh")
        fed_btc: torch.Tensor = self.fc2(hidden)
        return x_btc + gate2 * fed_btc

    def _attention(self, x_btc: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x_btc.shape
        qkv = self.qkv(x_btc).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        out_btc: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out_btc


class DemoTransformer(nn.Module):
    """A diffusion transformer that predicts the velocity of a rectified flow.

    Attributes:
        config: its shape.
    """

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        patch_channels = config.channels * config.patch_size**2
        self.patch_in = nn.Linear(patch_channels, width)
        self.positions = nn.Parameter(torch.empty(1, config.tokens, width))
        self.time_in = nn.Linear(width, width)
        # Not nn.Embedding: its initialiser imports torch's decompositions on the meta device, 3 seconds for nothing.
        self.labels = nn.Parameter(torch.empty(config.classes, width))
        self.blocks = nn.ModuleList(DemoBlock(width, config.heads) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, patch_channels)

    def forward(self, latent_bchw: torch.Tensor, time_b: torch.Tensor, label_b: torch.Tensor) -> torch.Tensor:
        """Return the velocity at `time_b`, shaped like the latent, [B, channels, image_size, image_size]."""
        side = self.config.image_size // self.config.patch_size
        patch = self.config.patch_size
        tokens = nn.functional.pixel_unshuffle(latent_bchw, patch).flatten(2).transpose(1, 2)
        x_btc = self.patch_in(tokens) + self.positions
        cond_bc = nn.functional.silu(self.time_in(_sinusoid(time_b, self.config.width))) + self.labels[label_b]
        for block in self.blocks:
            x_btc = block(x_btc, cond_bc)
        shift, scale = self.modulation_out(nn.functional.silu(cond_bc)).unsqueeze(1).chunk(2, dim=-1)
        out = self.patch_out(self.norm_out(x_btc) * (1 + scale) + shift)
        return nn.functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (side, side)), patch)


def _sinusoid(time_b: torch.Tensor, width: int) -> torch.Tensor:
    """Embed times in [0, 1] as sines and cosines of `width` / 2 frequencies, [B] -> [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=time_b.device) / half)
    angles = 1000 * time_b[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos(), torch.zeros_like(angles[:, : width % 2])], dim=-1)


def random_weights(config: DemoConfig, *, seed: int) -> dict[str, torch.Tensor]:
    """The float32 weights of a model by name; the same seed gives the same bytes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1]) if len(shape) > 1 else torch.zeros(shape)
        for name, shape in ((name, tensor.shape) for name, tensor in empty_model(config).state_dict().items())
    }


def empty_model(config: DemoConfig) -> DemoTransformer:
    """The model without memory, on the meta device."""
    with torch.device("meta"):
        return DemoTransformer(config).eval().requires_grad_(False)


def model_of(config: DemoConfig, weights: Mapping[str, torch.Tensor]) -> DemoTransformer:
    """A model that takes over the given weights, ready for inference."""
    model = empty_model(config)
    model.load_state_dict(weights, assign=True)
    return model


def write_checkpoint(path: Path, config: DemoConfig, *, seed: int) -> int:
    """Write a model with random float32 weights as safetensors and return the size of the file in bytes.

    Args:
        path: file to write; replaced when it exists.
        config: shape of the model, kept in the metadata of the file.
        seed: the same seed writes the same bytes.

    Raises:
        OSError: it cannot be written there.
    """
    # One entry alone: safetensors writes several in an order that changes from run to run.
    metadata = {CONFIG_KEY: json.dumps(asdict(config))}
    try:
        save_file(random_weights(config, seed=seed), path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}); choose another folder, or make room there") from error
    return path.stat().st_size


def load_checkpoint(path: Path) -> DemoTransformer:
    """Build the model that `write_checkpoint` wrote, ready for inference on the CPU.

    Raises:
        ValueError: the file was not written by `write_checkpoint`.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if CONFIG_KEY not in metadata:
        raise ValueError(
            f"{path} has no {CONFIG_KEY!r} in its metadata; only a file that the demo wrote can be loaded here"
        )
    # Copied out of the mapped file: how a CPU kernel rounds depends on whether weights start on 16 bytes. In a file
    # they rarely do, in an allocation always; without the copy the placed model would differ in the last bit.
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    return model_of(DemoConfig(**json.loads(metadata[CONFIG_KEY])), weights)


@torch.inference_mode()
def sample(
    model: nn.Module,
    config: DemoConfig,
    *,
    steps: int,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> torch.Tensor:
    """Denoise one latent, from noise at time 1 to an image at time 0.

    Args:
        model: predicts the velocity; `DemoTransformer`, placed or not.
        config: the model's shape.
        steps: equal Euler steps, one forward pass each.
        seed: seed of the noise.
        after_step: called with the number of finished steps.

    Returns:
        The latent at time 0, [1, channels, image_size, image_size].
    """
    latent = torch.randn(config.latent_shape, generator=torch.Generator().manual_seed(seed))
    label = torch.tensor([seed % config.classes])
    for step in range(steps):
        time = torch.tensor([1 - step / steps])
        latent = latent - model(latent, time, label) / steps
        after_step(step + 1)
    return latent
