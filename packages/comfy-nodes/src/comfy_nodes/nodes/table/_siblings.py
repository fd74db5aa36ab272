"""Nodes of other packs that get a choice of device, as data; they exist only when the other pack is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DEVICE_TYPE: Final = "MULTIGPUDEVICE"
"""The host's type of a device that goes from node to node."""

Way = Literal["choice", "socket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiblingNode:
    """One node of another pack.

    Attributes:
        base: id of that pack's node; ours is called the same with ``MultiGPU`` behind it.
        pack: the pack, as people know it.
        category: menu entry.
        device: name of the input that we add.
        after: the pack's input that ours stands behind; None for behind all of them, ``""`` for first.
        way: whether the device is chosen in a list or comes through a socket.
        required: whether a workflow must give the device.
        offload: name of a second added input, where weights go when they are not used; empty for none.
        hides: the pack's own inputs that the device replaces.
        emits_device: whether the device is an output as well, behind those of the pack.
        swaps: the device is where swapped blocks go: it is written into the settings that the node makes.
        follows_swap: the node heeds such settings of the model it is given.
    """

    base: str
    pack: str
    category: str = "multigpu"
    device: str = "device"
    after: str | None = None
    way: Way = "choice"
    required: bool = False
    offload: str = ""
    hides: tuple[str, ...] = ()
    emits_device: bool = False
    swaps: bool = False
    follows_swap: bool = False

    @property
    def node_id(self) -> str:
        """Id of our node."""
        return f"{self.base}MultiGPU"


_WAN: Final = "ComfyUI-WanVideoWrapper"


def _wan_loader(base: str, *, device: str, after: str, hides: tuple[str, ...] = ()) -> SiblingNode:
    """A loader that hands its device on."""
    return SiblingNode(
        base=base,
        pack=_WAN,
        category="multigpu/WanVideoWrapper",
        device=device,
        after=after,
        hides=hides,
        emits_device=True,
    )


def _wan_user(base: str, *, after: str, required: bool = True, device: str = "load_device") -> SiblingNode:
    """A node that runs where the socket says."""
    return SiblingNode(
        base=base,
        pack=_WAN,
        category="multigpu/WanVideoWrapper",
        device=device,
        after=after,
        way="socket",
        required=required,
        hides=("device",) if base.startswith("WanVideoTextEncode") else (),
        follows_swap=base == "WanVideoSampler",
    )


def _wan_part(base: str, *, after: str, device: str = "device", hides: tuple[str, ...] = ()) -> SiblingNode:
    """A node with a list of devices that hands nothing on."""
    return SiblingNode(
        base=base,
        pack=_WAN,
        category="multigpu/WanVideoWrapper",
        device=device,
        after=after,
        required=True,
        hides=hides,
    )


SIBLINGS: Final = (
    SiblingNode(base="LTXVLoader", pack="ComfyUI-LTXVideo"),
    SiblingNode(base="Florence2ModelLoader", pack="ComfyUI-Florence2", offload="offload_device"),
    SiblingNode(base="DownloadAndLoadFlorence2Model", pack="ComfyUI-Florence2", offload="offload_device"),
    SiblingNode(base="CheckpointLoaderNF4", pack="ComfyUI_bitsandbytes_NF4"),
    SiblingNode(base="LoadFluxControlNet", pack="x-flux-comfyui"),
    SiblingNode(base="MMAudioModelLoader", pack="ComfyUI-MMAudio"),
    SiblingNode(base="MMAudioFeatureUtilsLoader", pack="ComfyUI-MMAudio"),
    SiblingNode(base="MMAudioSampler", pack="ComfyUI-MMAudio"),
    SiblingNode(base="PulidModelLoader", pack="PuLID_ComfyUI"),
    SiblingNode(base="PulidInsightFaceLoader", pack="PuLID_ComfyUI"),
    SiblingNode(base="PulidEvaClipLoader", pack="PuLID_ComfyUI"),
    SiblingNode(base="HyVideoModelLoader", pack="ComfyUI-HunyuanVideoWrapper"),
    SiblingNode(base="HyVideoVAELoader", pack="ComfyUI-HunyuanVideoWrapper"),
    SiblingNode(base="DownloadAndLoadHyVideoTextEncoder", pack="ComfyUI-HunyuanVideoWrapper"),
    _wan_loader("LoadWanVideoT5TextEncoder", device="device", after="precision", hides=("load_device",)),
    _wan_loader("LoadWanVideoClipTextEncoder", device="device", after="precision", hides=("load_device",)),
    _wan_loader("WanVideoVAELoader", device="load_device", after="model_name"),
    _wan_loader("WanVideoTinyVAELoader", device="load_device", after="model_name"),
    SiblingNode(
        base="WanVideoModelLoader",
        pack=_WAN,
        category="multigpu/WanVideoWrapper",
        device="compute_device",
        after="load_device",
        required=True,
        emits_device=True,
    ),
    SiblingNode(
        base="WanVideoBlockSwap", pack=_WAN, category="multigpu/WanVideoWrapper", device="swap_device", swaps=True
    ),
    _wan_user("WanVideoTextEncode", after="t5", required=False),
    _wan_user("WanVideoTextEncodeSingle", after="t5", required=False),
    _wan_user("WanVideoImageToVideoEncode", after="vae", required=False),
    _wan_user("WanVideoDecode", after="vae"),
    _wan_user("WanVideoEncode", after="vae"),
    _wan_user("WanVideoVACEEncode", after="vae"),
    _wan_user("WanVideoClipVisionEncode", after="clip_vision"),
    _wan_user("WanVideoSampler", after="model", device="compute_device"),
    _wan_part("WanVideoTextEncodeCached", after="use_disk_cache", device="load_device", hides=("device",)),
    _wan_part("WanVideoControlnetLoader", after="load_device"),
    _wan_part("WanVideoUni3C_ControlnetLoader", after="load_device"),
    _wan_part("FantasyTalkingModelLoader", after="base_precision"),
    _wan_part("Wav2VecModelLoader", after="load_device"),
    _wan_part("DownloadAndLoadWav2VecModel", after="load_device"),
)
"""Every node of another pack that gets a device."""
