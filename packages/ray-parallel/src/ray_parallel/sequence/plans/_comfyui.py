"""Plans for ComfyUI's own model classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ray_parallel.sequence._plan import Attn, Compressed, Control, Grid, Opaque, Plan, Ranges, Region, Rows, Seq

TEXT, IMAGE, VIDEO, ALL = Seq("txt"), Seq("img"), Seq("video"), Seq("all")
JOINT = ("txt", "img")
JOINT_ATTENTION = Attn(JOINT, JOINT)
VIDEO_AND_TEXT = {"self_attn": Attn("video", "video"), "cross_attn": Attn("video")}


def _wan(*lists: str) -> Plan:
    region = Region(
        blocks=lists,
        args={"x": VIDEO, "freqs": VIDEO, "e": Rows("video", ndim=4)}
        | ({"c": VIDEO} if "vace_blocks" in lists else {}),
        whole=("context", "context_img_len"),
        out=VIDEO,
        attn=VIDEO_AND_TEXT,
        exit=("head", "x"),
    )
    return Plan(regions=[region], patches={"double_block": {"img": VIDEO}})


WAN = _wan("blocks")
WAN_VACE = _wan("blocks", "vace_blocks")

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
LTXAV = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args=dict.fromkeys(("x", "v_pe", "v_cross_pe"), (VIDEO, None))
            | dict.fromkeys(
                ("v_timestep", "v_cross_scale_shift_timestep", "v_cross_gate_timestep"), Compressed("video")
            )
            | {"self_attention_mask": Opaque("guide")},
            whole=(
                *("v_context", "a_context", "attention_mask", "v_prompt_timestep", "a_prompt_timestep", "a_pe"),
                *("a_cross_pe", "a_timestep", "a_cross_scale_shift_timestep", "a_cross_gate_timestep"),
            ),
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

# Each block gets text of its own layer of the language model: the streams are put together around every block.
HIDREAM = Plan(
    regions=[
        Region(
            blocks="double_stream_blocks",
            args={"image_tokens": IMAGE, "text_tokens": TEXT, "rope": Seq(("img", "txt"))},
            whole="adaln_input",
            out=(IMAGE, TEXT),
            attn={"block.attn1": Attn(("img", "txt"), ("img", "txt"))},
            scope="block",
        ),
        Region(
            blocks="single_stream_blocks",
            args={"image_tokens": ALL, "rope": ALL},
            whole="adaln_input",
            out=ALL,
            attn={"block.attn1": Attn("all", "all")},
            scope="block",
        ),
    ]
)

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
