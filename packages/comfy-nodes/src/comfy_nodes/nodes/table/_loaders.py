"""The loaders that placements are added to: their own inputs and outputs, in the order of saved workflows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from comfy_nodes.nodes.table._widgets import Files, Fixed, OfHostNode, Output, Widget, combo, link

Part = Literal["model", "clip", "vae", "clip_vision", "control_net", "checkpoint"]

MODEL: Final = Output(io_type="MODEL", name="MODEL", tooltip="The diffusion model, placed as asked.")
CLIP: Final = Output(io_type="CLIP", name="CLIP", tooltip="The text encoder, placed as asked.")
VAE: Final = Output(io_type="VAE", name="VAE", tooltip="The VAE that turns images into latents and back.")
CLIP_VISION: Final = Output(io_type="CLIP_VISION", name="CLIP_VISION", tooltip="The image encoder, placed as asked.")
CONTROL_NET: Final = Output(io_type="CONTROL_NET", name="CONTROL_NET", tooltip="The ControlNet, placed as asked.")

DIFFUSION_FOLDERS: Final = ("diffusion_models",)
ENCODER_FOLDERS: Final = ("text_encoders",)
GGUF: Final = ".gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One loader.

    Attributes:
        name: id of the loader (``"UNETLoader"``).
        title: what its nodes are called.
        loads: what kind of thing it loads.
        widgets: its own inputs, in order.
        outputs: its own outputs, in order.
        gguf: whether it reads GGUF files, which the host alone does not.
    """

    name: str
    title: str
    loads: Part
    widgets: tuple[Widget, ...]
    outputs: tuple[Output, ...]
    gguf: bool = False

    @property
    def is_encoder(self) -> bool:
        """Whether it loads an encoder, whose nodes call their compute device ``device``."""
        return self.loads in ("clip", "clip_vision")


def _of(node: str, name: str, tooltip: str) -> Widget:
    return combo(name, OfHostNode(node=node, input=name), tooltip)


_COUNTED: Final = {
    1: ("", "{}CLIP"),
    2: ("Dual", "Two {}CLIPs"),
    3: ("Triple", "Three {}CLIPs"),
    4: ("Quadruple", "Four {}CLIPs"),
}
"""How the loaders of so many text encoders are named, for the host and for people."""


def _encoder_loader(count: int, *, gguf: bool) -> Loader:
    """The loader of so many text encoders as one; only those of up to two also have a family to choose."""
    prefix, title = _COUNTED[count]
    host_node = f"{prefix}CLIPLoader"
    names = ("clip_name",) if count == 1 else tuple(f"clip_name{index}" for index in range(1, count + 1))
    files = tuple(
        combo(
            name,
            Files(folders=ENCODER_FOLDERS) if gguf else OfHostNode(node=host_node, input=name),
            "File of a text encoder, from models/text_encoders.",
        )
        for name in names
    )
    family = _of(host_node, "type", "Which family of models the text is encoded for.")
    return Loader(
        name=host_node + ("GGUF" if gguf else ""),
        title=f"Load {title.format('GGUF ' if gguf else '')}",
        loads="clip",
        widgets=(*files, family) if count <= 2 else files,
        outputs=(CLIP,),
        gguf=gguf,
    )


_UNET = _of("UNETLoader", "unet_name", "File from models/diffusion_models.")
_CHECKPOINT = _of(
    "CheckpointLoaderSimple", "ckpt_name", "Checkpoint from models/checkpoints, with model, CLIP and VAE."
)
_CONTROL_NET = _of("ControlNetLoader", "control_net_name", "ControlNet from models/controlnet.")
_GGUF_UNET = combo(
    "unet_name", Files(folders=DIFFUSION_FOLDERS, suffix=GGUF), "GGUF file from models/diffusion_models."
)
_DTYPES: Final = Fixed(options=("default", "target", "float32", "float16", "bfloat16"))
_ADVANCED = (
    _GGUF_UNET,
    combo(
        "dequant_dtype",
        _DTYPES,
        "Number format that weights are unpacked to; target is that of the input.",
        default="default",
    ),
    combo(
        "patch_dtype",
        _DTYPES,
        "Number format in which LoRAs are applied; target is that of the weights.",
        default="default",
    ),
    Widget(
        name="patch_on_device",
        kind="BOOLEAN",
        tooltip="Keep LoRA tensors on the compute device: faster, and more of its memory is used.",
        default=False,
    ),
)

CORE_LOADERS: Final = (
    Loader(
        name="UNETLoader",
        title="Load Diffusion Model",
        loads="model",
        widgets=(_UNET, _of("UNETLoader", "weight_dtype", "Number format that the weights are kept in.")),
        outputs=(MODEL,),
    ),
    Loader(
        name="VAELoader",
        title="Load VAE",
        loads="vae",
        widgets=(_of("VAELoader", "vae_name", "File from models/vae."),),
        outputs=(VAE,),
    ),
    *(_encoder_loader(count, gguf=False) for count in _COUNTED),
    Loader(
        name="CLIPVisionLoader",
        title="Load CLIP Vision",
        loads="clip_vision",
        widgets=(_of("CLIPVisionLoader", "clip_name", "Image encoder from models/clip_vision."),),
        outputs=(CLIP_VISION,),
    ),
    Loader(
        name="CheckpointLoaderSimple",
        title="Load Checkpoint",
        loads="checkpoint",
        widgets=(_CHECKPOINT,),
        outputs=(MODEL, CLIP, VAE),
    ),
    Loader(
        name="ControlNetLoader",
        title="Load ControlNet",
        loads="control_net",
        widgets=(_CONTROL_NET,),
        outputs=(CONTROL_NET,),
    ),
    Loader(
        name="DiffusersLoader",
        title="Load Diffusers Folder",
        loads="checkpoint",
        widgets=(_of("DiffusersLoader", "model_path", "Folder from models/diffusers, in the layout of diffusers."),),
        outputs=(MODEL, CLIP, VAE),
    ),
    Loader(
        name="DiffControlNetLoader",
        title="Load ControlNet (difference)",
        loads="control_net",
        widgets=(link("model", "MODEL", "The model that the ControlNet stores its difference to."), _CONTROL_NET),
        outputs=(CONTROL_NET,),
    ),
)

GGUF_MODEL_LOADERS: Final = (
    Loader(
        name="UnetLoaderGGUF",
        title="Load GGUF Diffusion Model",
        loads="model",
        widgets=(_GGUF_UNET,),
        outputs=(MODEL,),
        gguf=True,
    ),
    Loader(
        name="UnetLoaderGGUFAdvanced",
        title="Load GGUF Diffusion Model (advanced)",
        loads="model",
        widgets=_ADVANCED,
        outputs=(MODEL,),
        gguf=True,
    ),
)

GGUF_ENCODER_LOADERS: Final = tuple(_encoder_loader(count, gguf=True) for count in _COUNTED)

LOADERS: Final = {loader.name: loader for loader in (*CORE_LOADERS, *GGUF_MODEL_LOADERS, *GGUF_ENCODER_LOADERS)}
"""Every loader by name."""
