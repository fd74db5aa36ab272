"""Plans for models of diffusers."""

from __future__ import annotations

from ray_parallel.sequence.plan._plan import Attn, Plan, Ranges, Region, Rows, Seq, Streams
from ray_parallel.sequence.plan._registry import Entry

TEXT, IMAGE, VIDEO = Seq("txt"), Seq("img"), Seq("video")


def _rotary(streams: str | Streams, dim: int = 0) -> tuple[Seq, Seq]:
    """Cosines and sines of the positions."""
    return (Seq(streams, dim), Seq(streams, dim))


FLUX = Plan(
    regions=[
        Region(
            blocks=("transformer_blocks", "single_transformer_blocks"),
            args={"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "image_rotary_emb": _rotary(("txt", "img"))},
            whole="temb",
            out=(TEXT, IMAGE),
            attn={"attn": Attn(("txt", "img"), ("txt", "img"))},
        )
    ],
    inputs={"controlnet_block_samples": IMAGE, "controlnet_single_block_samples": IMAGE},
)

WAN = Plan(
    regions=[
        Region(
            blocks="blocks",
            args={"hidden_states": VIDEO, "temb": Rows("video", ndim=4), "rotary_emb": _rotary("video", 1)},
            whole="encoder_hidden_states",
            out=VIDEO,
            attn={"attn1": Attn("video", "video"), "attn2": Attn("video")},
        )
    ]
)

LTX = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args={"hidden_states": VIDEO, "temb": Rows("video"), "image_rotary_emb": _rotary("video", 1)},
            whole=("encoder_hidden_states", "encoder_attention_mask"),
            out=VIDEO,
            attn={"attn1": Attn("video", "video"), "attn2": Attn("video")},
        )
    ]
)

QWEN_IMAGE = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args={"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "encoder_hidden_states_mask": TEXT}
            | {"image_rotary_emb": (Seq("img", 0), Seq("txt", 0)), "modulate_index": IMAGE},
            whole="temb",
            out=(TEXT, IMAGE),
            attn={"attn": Attn(("txt", "img"), ("txt", "img"))},
        )
    ],
    inputs={"controlnet_block_samples": IMAGE},
)

# The double blocks call the rotary embedding freqs_cis, the single ones image_rotary_emb. Models without the
# first-frame form hand its two arguments to blocks that ignore them (*args).
HUNYUAN_VIDEO = Plan(
    regions=[
        Region(
            blocks=("transformer_blocks", "single_transformer_blocks"),
            args={"hidden_states": VIDEO, "encoder_hidden_states": TEXT, "num_tokens": Ranges("video")}
            | {"freqs_cis": _rotary("video"), "image_rotary_emb": _rotary("video")},
            whole=("temb", "attention_mask", "token_replace_emb", "*args"),
            out=(VIDEO, TEXT),
            attn={"attn": Attn(("video", "txt"), ("video", "txt"))},
        )
    ]
)

SD3 = Plan(
    regions=[
        Region(
            blocks="transformer_blocks",
            args={"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
            whole="temb",
            out=(TEXT, IMAGE),
            attn={"attn": Attn(("img", "txt"), ("img", "txt")), "attn2": Attn("img", "img")},
        )
    ],
    inputs={"block_controlnet_hidden_states": IMAGE},
)


def _known(model: str, plan: Plan, **blocks: str) -> Entry:
    """A transformer of diffusers, with the parameters of its blocks."""
    parameters = {name: tuple(listed.split()) for name, listed in blocks.items()}
    return Entry(model=f"diffusers.models.transformers.{model}", plan=plan, blocks=parameters)


_FLUX_BLOCKS = "hidden_states encoder_hidden_states temb image_rotary_emb joint_attention_kwargs"
_HUNYUAN = "hidden_states encoder_hidden_states temb attention_mask"

DIFFUSERS = (
    _known(
        "transformer_flux.FluxTransformer2DModel",
        FLUX,
        transformer_blocks=_FLUX_BLOCKS,
        single_transformer_blocks=_FLUX_BLOCKS,
    ),
    _known("transformer_wan.WanTransformer3DModel", WAN, blocks="hidden_states encoder_hidden_states temb rotary_emb"),
    _known(
        "transformer_ltx.LTXVideoTransformer3DModel",
        LTX,
        transformer_blocks="hidden_states encoder_hidden_states temb image_rotary_emb encoder_attention_mask",
    ),
    _known(
        "transformer_qwenimage.QwenImageTransformer2DModel",
        QWEN_IMAGE,
        transformer_blocks="hidden_states encoder_hidden_states encoder_hidden_states_mask temb image_rotary_emb "
        "joint_attention_kwargs modulate_index",
    ),
    _known(
        "transformer_hunyuan_video.HunyuanVideoTransformer3DModel",
        HUNYUAN_VIDEO,
        transformer_blocks=f"{_HUNYUAN} freqs_cis *args **kwargs",
        single_transformer_blocks=f"{_HUNYUAN} image_rotary_emb *args **kwargs",
    ),
    _known(
        "transformer_hunyuan_video.HunyuanVideoTransformer3DModel",
        HUNYUAN_VIDEO,
        transformer_blocks=f"{_HUNYUAN} freqs_cis token_replace_emb num_tokens",
        single_transformer_blocks=f"{_HUNYUAN} image_rotary_emb token_replace_emb num_tokens",
    ),
    _known(
        "transformer_sd3.SD3Transformer2DModel",
        SD3,
        transformer_blocks="hidden_states encoder_hidden_states temb joint_attention_kwargs",
    ),
)

DIFFUSERS_REFUSED = {
    "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel": "its convolutions mix neighbouring tokens",
}
