"""What the example workflows are put together from: nodes, links, and the usual ways from a prompt to a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Ref = tuple[str, int]
"""A link: the name of the node it comes from, and its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a graph.

    Attributes:
        name: what links of the same graph call it.
        kind: its type.
        inputs: links and widget values by input.
    """

    name: str
    kind: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One workflow.

    Attributes:
        name: file name without its ending.
        note: what it shows and what to change, as Markdown.
        nodes: its nodes, each behind those that it takes from.
    """

    name: str
    note: str
    nodes: tuple[Node, ...]


_PROMPT: Final = "a lighthouse on a cliff at dusk, long exposure, soft light"
_MOTION: Final = "a lighthouse on a cliff at dusk, waves rolling in, slow camera"
_NO: Final = ""
_FLUX_FILE: Final = "flux1-dev.safetensors"
_FLUX_GGUF: Final = "flux1-dev-Q8_0.gguf"
_FLUX_ENCODERS: Final = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"}
CARD: Final = "cuda:0"


def node(name: str, kind: str, **inputs: Any) -> Node:
    """A node; what is given by name are its inputs."""
    return Node(name=name, kind=kind, inputs=inputs)


def picture(
    *loaders: Node,
    model: Ref = ("model", 0),
    clip: Ref = ("clip", 0),
    vae: Ref = ("vae", 0),
    size: int = 1024,
    cfg: float = 1.0,
    steps: int = 20,
    latent: str = "EmptySD3LatentImage",
    guidance: float | None = None,
) -> tuple[Node, ...]:
    """Loaders, a prompt, a sampler and a saved image."""
    positive: Ref = ("prompt", 0)
    nodes = [
        *loaders,
        *_prompts(clip, _PROMPT),
        node("latent", latent, width=size, height=size, batch_size=1),
    ]
    if guidance is not None:
        nodes.append(node("guided", "FluxGuidance", conditioning=positive, guidance=guidance))
        positive = ("guided", 0)
    return (*nodes, *_sampled(model=model, positive=positive, negative=("nothing", 0), vae=vae, cfg=cfg, steps=steps))


def _prompts(clip: Ref, text: str) -> tuple[Node, Node]:
    """What is wanted, and what is not: nothing."""
    return (
        node("prompt", "CLIPTextEncode", clip=clip, text=text),
        node("nothing", "CLIPTextEncode", clip=clip, text=_NO),
    )


def _sampled(
    *, model: Ref, positive: Ref, negative: Ref, vae: Ref, cfg: float, steps: int, latent: Ref = ("latent", 0)
) -> tuple[Node, ...]:
    sampler = node(
        "sampler",
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=1,
        control_after_generate="fixed",
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return (
        sampler,
        node("image", "VAEDecode", samples=("sampler", 0), vae=vae),
        node("saved", "SaveImage", images=("image", 0), filename_prefix="torchspan"),
    )


def clip(
    *loaders: Node,
    latent: str = "EmptyHunyuanLatentVideo",
    size: tuple[int, int, int] = (832, 480, 49),
    model: Ref = ("model", 0),
    vae: Ref = ("vae", 0),
    clip: Ref = ("clip", 0),
    cfg: float = 6.0,
    frame_rate: float | None = None,
) -> tuple[Node, ...]:
    """Loaders, a prompt, a sampler and a saved clip."""
    width, height, length = size
    nodes = [
        *loaders,
        *_prompts(clip, _MOTION),
        node("latent", latent, width=width, height=height, length=length, batch_size=1),
    ]
    positive, negative = ("prompt", 0), ("nothing", 0)
    if frame_rate is not None:
        nodes.append(node("rated", "LTXVConditioning", positive=positive, negative=negative, frame_rate=frame_rate))
        positive, negative = ("rated", 0), ("rated", 1)
    *sampled, _ = _sampled(model=model, positive=positive, negative=negative, vae=vae, cfg=cfg, steps=20)
    saved = node(
        "saved",
        "SaveAnimatedWEBP",
        images=("image", 0),
        filename_prefix="torchspan",
        fps=16.0,
        lossless=False,
        quality=80,
        method="default",
    )
    return (*nodes, *sampled, saved)


def flux_loader(kind: str = "UNETLoaderDisTorchMultiGPU", **inputs: Any) -> Node:
    """A loader of Flux, from a GGUF file where its kind is for one."""
    file = _FLUX_GGUF if "GGUF" in kind else _FLUX_FILE
    dtype = {} if "GGUF" in kind else {"weight_dtype": "default"}
    return node("model", kind, unet_name=file, **dtype, **inputs)


def flux_encoders(kind: str = "DualCLIPLoaderMultiGPU", device: str = CARD, **inputs: Any) -> Node:
    """A loader of Flux's two text encoders."""
    return node("clip", kind, **_FLUX_ENCODERS, device=device, **inputs)


def vae_loader(name: str, device: str = CARD) -> Node:
    """A loader of a VAE on a device."""
    return node("vae", "VAELoaderMultiGPU", vae_name=name, device=device)


def flux_picture(model: Node, encoders: Node | None = None, vae: Node | None = None) -> tuple[Node, ...]:
    """A picture by Flux; encoders and VAE on the first card unless given."""
    return picture(model, encoders or flux_encoders(), vae or vae_loader("ae.safetensors"), guidance=3.5)


def unet_loader(file: str, name: str = "model", **inputs: Any) -> Node:
    """A loader of a diffusion model with a placement."""
    return node(name, "UNETLoaderDisTorchMultiGPU", unet_name=file, weight_dtype="default", **inputs)


def checkpoint(kind: str, file: str, **inputs: Any) -> Node:
    """A loader of a whole checkpoint."""
    return node("model", kind, ckpt_name=file, **inputs)


WAN_ENCODER: Final = node(
    "clip", "CLIPLoaderMultiGPU", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan", device="cuda:1"
)
WAN_VAE: Final = vae_loader("wan_2.1_vae.safetensors", "cuda:1")


def _half(name: str, model: str, *, first: bool) -> Node:
    """One of two samplers that share the steps of a clip."""
    return node(
        name,
        "KSamplerAdvanced",
        model=(model, 0),
        positive=("prompt", 0),
        negative=("nothing", 0),
        latent_image=("latent", 0) if first else ("early", 0),
        add_noise="enable" if first else "disable",
        noise_seed=1,
        control_after_generate="fixed",
        steps=20,
        cfg=3.5,
        sampler_name="euler",
        scheduler="simple",
        start_at_step=0 if first else 10,
        end_at_step=10 if first else 10000,
        return_with_leftover_noise="enable" if first else "disable",
    )


def two_experts() -> tuple[Node, ...]:
    """A clip by two models that share the steps."""
    away: dict[str, Any] = {"virtual_ram_gb": 9.0, "donor_device": "cuda:1"}
    *start, _sampler, _image, saved = clip(
        unet_loader("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", **away),
        unet_loader("wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", "low", **away),
        WAN_ENCODER,
        WAN_VAE,
    )
    return (
        *start,
        _half("early", "model", first=True),
        _half("late", "low", first=False),
        node("image", "VAEDecode", samples=("late", 0), vae=("vae", 0)),
        saved,
    )


def controlled() -> tuple[Node, ...]:
    """A picture along the edges of another."""
    return (
        checkpoint("CheckpointLoaderSimpleMultiGPU", "sd_xl_base_1.0.safetensors", device=CARD),
        node("net", "ControlNetLoaderDisTorchMultiGPU", control_net_name="canny-sdxl.safetensors", virtual_ram_gb=1.0),
        node("edges", "LoadImage", image="edges.png", upload="image"),
        *_prompts(("model", 1), _PROMPT),
        node(
            "controlled",
            "ControlNetApplyAdvanced",
            positive=("prompt", 0),
            negative=("nothing", 0),
            control_net=("net", 0),
            image=("edges", 0),
            strength=0.7,
            start_percent=0.0,
            end_percent=1.0,
        ),
        node("latent", "EmptyLatentImage", width=1024, height=1024, batch_size=1),
        *_sampled(
            model=("model", 0),
            positive=("controlled", 0),
            negative=("controlled", 1),
            vae=("model", 2),
            cfg=7.0,
            steps=20,
        ),
    )


def seen() -> tuple[Node, ...]:
    """A picture that is shown to the model through an image encoder."""
    return (
        checkpoint("CheckpointLoaderSimpleMultiGPU", "sd21-unclip-h.ckpt", device=CARD),
        node("vision", "CLIPVisionLoaderMultiGPU", clip_name="clip_vision_h.safetensors", device="cpu"),
        node("photo", "LoadImage", image="photo.png", upload="image"),
        node("seen", "CLIPVisionEncode", clip_vision=("vision", 0), image=("photo", 0), crop="center"),
        *_prompts(("model", 1), _PROMPT),
        node(
            "shown",
            "unCLIPConditioning",
            conditioning=("prompt", 0),
            clip_vision_output=("seen", 0),
            strength=1.0,
            noise_augmentation=0.0,
        ),
        node("latent", "EmptyLatentImage", width=768, height=768, batch_size=1),
        *_sampled(
            model=("model", 0), positive=("shown", 0), negative=("nothing", 0), vae=("model", 2), cfg=7.0, steps=20
        ),
    )


def checkpoint_picture(loader: Node, *, size: int = 1024) -> tuple[Node, ...]:
    """A picture by a checkpoint that one loader loads."""
    return picture(loader, clip=("model", 1), vae=("model", 2), size=size, cfg=7.0, latent="EmptyLatentImage", steps=25)


def with_lora() -> tuple[Node, ...]:
    """A picture by Flux with a LoRA."""
    lora = node(
        "lora", "LoraLoaderModelOnly", model=("model", 0), lora_name="flux_style.safetensors", strength_model=0.8
    )
    return picture(
        flux_loader(virtual_ram_gb=8.0),
        lora,
        flux_encoders(),
        vae_loader("ae.safetensors"),
        model=("lora", 0),
        guidance=3.5,
    )


def released() -> tuple[Node, ...]:
    """A picture by Flux that is decoded with the first card released."""
    *start, _image, saved = flux_picture(flux_loader(virtual_ram_gb=8.0))
    return (
        *start,
        node("released", "TorchspanRelease", anything=("sampler", 0), device=CARD),
        node("image", "VAEDecode", samples=("released", 0), vae=("vae", 0)),
        saved,
    )


def planned() -> tuple[Node, ...]:
    """A dry run with its texts and its picture."""
    return (
        node(
            "plan",
            "TorchspanPlan",
            model_name=f"diffusion_models/{_FLUX_FILE}",
            virtual_ram_gb=12.0,
            compute_seconds=1.0,
        ),
        node("tables", "PreviewAny", source=("plan", 0)),
        node("allocation", "PreviewAny", source=("plan", 2)),
        node("picture", "PreviewImage", images=("plan", 3)),
    )
