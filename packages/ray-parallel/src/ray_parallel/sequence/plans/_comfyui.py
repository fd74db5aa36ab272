"""Plans for ComfyUI's own model classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ray_parallel.sequence.plan._plan import (
    Attn,
    Compressed,
    Control,
    Grid,
    Opaque,
    Plan,
    Ranges,
    Region,
    Rows,
    Seq,
    Spec,
)
from ray_parallel.sequence.plan._registry import Entry

TEXT, IMAGE, VIDEO, ALL = Seq("txt"), Seq("img"), Seq("video"), Seq("all")
JOINT = ("txt", "img")
JOINT_ATTENTION = Attn(JOINT, JOINT)
VIDEO_AND_TEXT = {"self_attn": Attn("video", "video"), "cross_attn": Attn("video")}


def _wan(*lists: str, args: Mapping[str, Spec], whole: tuple[str, ...] = ()) -> Plan:
    region = Region(
        blocks=lists,
        args={"x": VIDEO, "freqs": VIDEO, **args},
        whole=("context", "context_img_len", *whole),
        out=VIDEO,
        attn=VIDEO_AND_TEXT,
        exit=("head", "x"),
    )
    return Plan(regions=[region], patches={"double_block": {"img": VIDEO}})


# Modulation of four dimensions is one row a frame; VACE has one timestep only.
WAN = _wan("blocks", args={"e": Rows("video", ndim=4)})
WAN_VACE = _wan("blocks", "vace_blocks", args={"c": VIDEO}, whole=("e",))

_DOUBLE = Region(
    blocks="double_blocks",
    args={"img": IMAGE, "txt": TEXT, "pe": Seq(JOINT, 2)}
    | {"modulation_dims_img": Ranges("img"), "modulation_dims_txt": Ranges("txt")},
    whole=("vec", "attn_mask"),
    out=(IMAGE, TEXT),
    attn={"": JOINT_ATTENTION},
)
_SINGLE = Region(
    blocks="single_blocks",
    args={"x": ALL, "pe": Seq("all", 2), "modulation_dims": Ranges("all")},
    whole=("vec", "attn_mask"),
    out=ALL,
    attn={"": Attn("all", "all")},
)
# Flux, Flux 2, Chroma and HunyuanVideo share their blocks; between the two lists the text is put before the image.
FLUX = Plan(
    regions=[_DOUBLE, _SINGLE],
    control=(
        Control(key="input", blocks="double_blocks", stream="img", out=0),
        Control(key="output", blocks="single_blocks", stream="all", after="txt"),
    ),
    patches={"post_input": {}},
)

QWEN_IMAGE = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args={"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "encoder_hidden_states_mask": TEXT}
            | {"image_rotary_emb": Seq(JOINT, 2), "timestep_zero_index": Ranges("img")},
            whole="temb",
            out=(TEXT, IMAGE),
            attn={"attn": JOINT_ATTENTION},
        )
    ],
    control=(Control(key="input", blocks="transformer_blocks", stream="img", out=1),),
    patches={"post_input": {}, "double_block": {"img": IMAGE, "txt": TEXT}},
)

LTXV = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args={"x": VIDEO, "pe": (VIDEO, None), "timestep": Rows("video"), "self_attention_mask": Opaque("guide")},
            whole=("context", "attention_mask", "prompt_timestep"),
            out=VIDEO,
            attn={"attn1": Attn("video", "video"), "attn2": Attn("video")},
        )
    ]
)

# The sound stays whole on every rank: its hundred tokens cost less than the four exchanges a block that cutting needs.
_AV_TIMESTEPS = ("v_timestep", "v_cross_scale_shift_timestep", "v_cross_gate_timestep")
_AV_SOUND = ("a_pe", "a_cross_pe", "a_timestep", "a_cross_scale_shift_timestep", "a_cross_gate_timestep")
_AV_TEXT = ("v_context", "a_context", "attention_mask", "v_prompt_timestep", "a_prompt_timestep")
LTXAV = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args=dict.fromkeys(("x", "v_pe", "v_cross_pe"), (VIDEO, None))
            | dict.fromkeys(_AV_TIMESTEPS, Compressed("video"))
            | {"self_attention_mask": Opaque("guide")},
            whole=_AV_SOUND + _AV_TEXT,
            out=(VIDEO, None),
            attn={"attn1": Attn("video", "video"), "attn2": Attn("video"), "audio_attn1": Attn()}
            | {"audio_attn2": Attn(), "audio_to_video_attn": Attn("video"), "video_to_audio_attn": Attn((), "video")},
        )
    ]
)


def _lumina(blocks: str, stream: str) -> Region:
    return Region(
        blocks=blocks,
        args={"x": Seq(stream), "freqs_cis": Seq(stream), "timestep_zero_index": Ranges(stream)},
        whole="adaln_input",
        out=Seq(stream),
        attn={"attention": Attn(stream, stream)},
    )


# Lumina 2 and Z-Image. The refiner of the text, which comes before them, is short and stays whole.
LUMINA2 = Plan(
    regions=[_lumina("noise_refiner", "img"), _lumina("layers", "all")], patches={"noise_refiner": {"img": IMAGE}}
)

COSMOS_PREDICT2 = Plan(
    regions=[
        Region(
            blocks="blocks",
            args={"x_B_T_H_W_D": Grid("video"), "extra_per_block_pos_emb": Grid("video"), "rope_emb_L_1_1_D": VIDEO}
            | dict.fromkeys(("emb_B_T_D", "adaln_lora_B_T_3D"), Rows("video")),
            whole="crossattn_emb",
            out=Grid("video"),
            attn=VIDEO_AND_TEXT,
        )
    ],
    patches={"post_input": {}},
)


def _hidream(blocks: str, streams: str | tuple[str, str]) -> Region:
    double = isinstance(streams, tuple)
    return Region(
        blocks=blocks,
        args={"image_tokens": IMAGE, "text_tokens": TEXT, "rope": Seq(streams)}
        if double
        else {"image_tokens": ALL, "rope": ALL},
        whole="adaln_input",
        out=(IMAGE, TEXT) if double else ALL,
        attn={"block.attn1": Attn(streams, streams)},
        scope="block",
    )


# Each block gets text of another layer of the language model: the streams are put together around every block.
HIDREAM = Plan(regions=[_hidream("double_stream_blocks", ("img", "txt")), _hidream("single_stream_blocks", "all")])

# The host passes context and x by position through (*args, **kwargs). Blocks of 3.5 medium attend a second time.
SD3 = Plan(
    regions=[
        Region(
            blocks="joint_blocks",
            args={"*args": (TEXT, IMAGE)},
            whole=("c", "use_checkpoint"),
            out=(TEXT, IMAGE),
            attn={"": Attn(JOINT, JOINT, other=Attn("img", "img"))},
        )
    ],
    control=(Control(key="output", blocks="joint_blocks", stream="img", out=1),),
)


def guided(mask: Any, q: Tensor, k: Tensor, v: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """Attention under LTX's guide mask, which weighs how much noise tokens and guide tokens see of each other.

    Args:
        mask: the host's object: guides at `guide_start`, `tracked_count` of them, seen by the others under
            `noisy_mask` [1, 1, 1, S] and seeing them under `tracked_mask` [1, 1, tracked_count, S].
        q: queries of the whole sequence, [B, H, S, D].
        k: keys, likewise.
        v: values, likewise.
        attend: attention of the model, (q, k, v, mask) -> [B, H, rows of q, D].
    """
    start, end = mask.guide_start, mask.guide_start + mask.tracked_count
    parts = (
        (q[:, :, :start], mask.noisy_mask),
        (q[:, :, start:end], mask.tracked_mask),
        (q[:, :, end:], None),
    )
    return torch.cat([attend(rows, k, v, part) for rows, part in parts if rows.shape[2]], dim=2)


def _known(model: str, plan: Plan, **blocks: str) -> Entry:
    """A class of the host, with the parameters of its blocks."""
    parameters = {name: tuple(listed.split()) for name, listed in blocks.items()}
    return Entry(model=f"comfy.ldm.{model}", plan=plan, blocks=parameters, kernels={"guide": guided})


_FLUX_BLOCKS = {
    "double_blocks": "img txt vec pe attn_mask modulation_dims_img modulation_dims_txt transformer_options",
    "single_blocks": "x vec pe attn_mask modulation_dims transformer_options",
}
_WAN_BLOCKS = "x e freqs context context_img_len transformer_options"
_LUMINA_BLOCKS = "x x_mask freqs_cis adaln_input timestep_zero_index transformer_options"
_HIDREAM_BLOCKS = "image_tokens image_tokens_masks text_tokens adaln_input rope transformer_options"

COMFYUI = (
    _known("wan.model.WanModel", WAN, blocks=_WAN_BLOCKS),
    _known("wan.model.CameraWanModel", WAN, blocks=_WAN_BLOCKS),
    _known("wan.model.VaceWanModel", WAN_VACE, blocks=_WAN_BLOCKS, vace_blocks="c x **kwargs"),
    _known("flux.model.Flux", FLUX, **_FLUX_BLOCKS),
    _known("chroma.model.Chroma", FLUX, **_FLUX_BLOCKS),
    _known("hunyuan_video.model.HunyuanVideo", FLUX, **_FLUX_BLOCKS),
    _known(
        "qwen_image.model.QwenImageTransformer2DModel",
        QWEN_IMAGE,
        transformer_blocks="hidden_states encoder_hidden_states encoder_hidden_states_mask temb image_rotary_emb "
        "timestep_zero_index transformer_options",
    ),
    _known(
        "lightricks.model.LTXVModel",
        LTXV,
        transformer_blocks="x context attention_mask timestep pe transformer_options self_attention_mask "
        "prompt_timestep",
    ),
    _known(
        "lightricks.av_model.LTXAVModel",
        LTXAV,
        transformer_blocks="x v_context a_context attention_mask v_timestep a_timestep v_pe a_pe v_cross_pe a_cross_pe "
        "v_cross_scale_shift_timestep a_cross_scale_shift_timestep v_cross_gate_timestep a_cross_gate_timestep "
        "transformer_options self_attention_mask v_prompt_timestep a_prompt_timestep",
    ),
    _known("lumina.model.NextDiT", LUMINA2, noise_refiner=_LUMINA_BLOCKS, layers=_LUMINA_BLOCKS),
    _known(
        "cosmos.predict2.MiniTrainDIT",
        COSMOS_PREDICT2,
        blocks="x_B_T_H_W_D emb_B_T_D crossattn_emb rope_emb_L_1_1_D adaln_lora_B_T_3D extra_per_block_pos_emb "
        "transformer_options",
    ),
    _known(
        "hidream.model.HiDreamImageTransformer2DModel",
        HIDREAM,
        double_stream_blocks=_HIDREAM_BLOCKS,
        single_stream_blocks=_HIDREAM_BLOCKS,
    ),
    _known("modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", SD3, joint_blocks="*args **kwargs"),
)

COMFYUI_REFUSED = {
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel": "its convolutions mix neighbouring tokens",
    "comfy.ldm.wan.model.WanModel_S2V": "it adds sound to the tokens of each frame between its blocks",
    "comfy.ldm.wan.model.HumoWanModel": "its blocks attend over sound frame by frame, and a rank holds parts of frames",
    "comfy.ldm.wan.model_animate.AnimateWanModel": "it adds the motion of a face to each frame between its blocks",
}
