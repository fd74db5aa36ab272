"""Plans for models of diffusers."""

from __future__ import annotations

from ray_parallel.sequence._plan import Attn, Plan, Ranges, Region, Rows, Seq, Streams

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
