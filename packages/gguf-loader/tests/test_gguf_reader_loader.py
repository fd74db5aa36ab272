from __future__ import annotations

import logging
from pathlib import Path

import gguf_bytes as raw
import pytest
import torch

from gguf_loader import (
    GgufKeyError,
    GgufMetadataError,
    GgufTypeError,
    gguf_sd_loader,
    load_gguf,
    open_gguf,
    type_by_name,
)
from gguf_loader.packed._tensor import PackedTensor

ARCHITECTURE = raw.pair("general.architecture", raw.STRING, "wan")


def named(*names: str, pairs: list[bytes] | None = None) -> raw.File:
    return raw.File(pairs=[ARCHITECTURE] if pairs is None else pairs, tensors=[raw.Tensor(name) for name in names])


def test_native_tensors_are_plain_and_quantised_ones_are_packed(tmp_path: Path) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    checkpoint = load_gguf(path)
    assert list(checkpoint.state_dict) == ["norm", "patch", "linear", "deep", "scalar"]
    assert checkpoint.left_out == ()
    packed = checkpoint.state_dict["linear"]
    assert isinstance(packed, PackedTensor)
    assert packed.shape == (2, 64)
    assert packed.dtype is torch.bfloat16
    assert packed.ggml_type is type_by_name("Q8_0")
    assert torch.equal(packed.packed, open_gguf(path).tensor_bytes("linear"))
    assert type(checkpoint.state_dict["norm"]) is torch.Tensor
    assert checkpoint.state_dict["norm"].dtype is torch.float32
    assert checkpoint.state_dict["patch"].shape == (2, 3, 1, 2, 2)
    assert checkpoint.header.architecture == "flux"


def test_the_dtype_of_a_load_is_that_of_its_packed_tensors_alone(tmp_path: Path) -> None:
    state_dict = load_gguf(raw.rich().write(tmp_path / "rich.gguf"), dtype=torch.float16).state_dict
    assert state_dict["linear"].dtype is torch.float16
    assert state_dict["norm"].dtype is torch.float32


def test_a_flattened_convolution_is_packed_in_its_original_shape(tmp_path: Path) -> None:
    """Blocks run over the weights as they lie, whatever the last dimension."""
    scale_of_half = b"\x00\x38"
    data = b"".join(scale_of_half + bytes(range(32 * block, 32 * block + 32)) for block in range(2))
    pairs = [raw.pair("comfy.gguf.orig_shape.patch", raw.ARRAY, raw.array(raw.I32, [2, 4, 2, 2, 2]))]
    file = raw.File(pairs=pairs, tensors=[raw.Tensor("patch", (64,), raw.Q8_0, data)])
    patch = load_gguf(file.write(tmp_path / "patch.gguf")).state_dict["patch"]
    assert isinstance(patch, PackedTensor)
    assert torch.equal(patch.dequantize(torch.float32), torch.arange(64.0).view(2, 4, 2, 2, 2) / 2)


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_types_that_hold_no_weights_are_refused_at_load(tmp_path: Path, name: str) -> None:
    kind = type_by_name(name)
    file = raw.File(tensors=[raw.Tensor("t", (kind.block_size,), kind.id, bytes(kind.type_size))])
    with pytest.raises(
        GgufTypeError, match=f"tensor 't' type: {name} is a format of activations.*quantise the original"
    ):
        load_gguf(file.write(tmp_path / "activations.gguf"))


def test_a_prefix_is_cut_off_and_the_other_tensors_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = named("model.diffusion_model.a", "model.diffusion_model.b.c", "first_stage_model.d").write(
        tmp_path / "f.gguf"
    )
    with caplog.at_level(logging.INFO, "gguf_loader"):
        checkpoint = load_gguf(path, prefix="model.diffusion_model.")
    assert set(checkpoint.state_dict) == {"a", "b.c"}
    assert checkpoint.left_out == ("first_stage_model.d",)
    assert "1 tensors without the prefix 'model.diffusion_model.' left out" in caplog.text


def test_a_prefix_that_no_name_has_changes_nothing(tmp_path: Path) -> None:
    checkpoint = load_gguf(named("a", "b").write(tmp_path / "f.gguf"), prefix="model.")
    assert list(checkpoint.state_dict) == ["a", "b"]
    assert checkpoint.left_out == ()


def test_a_name_that_becomes_that_of_another_tensor_is_refused(tmp_path: Path) -> None:
    path = named("model.a", "a").write(tmp_path / "f.gguf")
    with pytest.raises(
        GgufKeyError, match=r"tensor 'model.a': without its prefix it has the name of another tensor, 'a'"
    ):
        load_gguf(path, prefix="model.")
    assert set(load_gguf(path).state_dict) == {"model.a", "a"}


def test_the_thin_face_returns_what_the_host_unpacks(tmp_path: Path) -> None:
    pairs = [ARCHITECTURE, raw.pair("config", raw.STRING, "{}"), raw.pair("n", raw.U8, 3)]
    path = named("model.diffusion_model.a", pairs=pairs).write(tmp_path / "f.gguf")
    state_dict, extra = gguf_sd_loader(path)
    assert set(state_dict) == {"a"}
    assert extra == {
        "arch_str": "wan",
        "metadata": {"general.architecture": "wan", "config": "{}", "n": "3"},
    }
    assert set(gguf_sd_loader(path, handle_prefix=None)[0]) == {"model.diffusion_model.a"}
    assert set(gguf_sd_loader(path, "model.")[0]) == {"diffusion_model.a"}


@pytest.mark.parametrize("architecture", ["flux", "pig", "one that was invented yesterday", None])
def test_no_architecture_is_judged_by_its_name(tmp_path: Path, architecture: str | None) -> None:
    pairs = [] if architecture is None else [raw.pair("general.architecture", raw.STRING, architecture)]
    _, extra = gguf_sd_loader(named("a", pairs=pairs).write(tmp_path / "f.gguf"))
    assert extra["arch_str"] == architecture


def test_an_architecture_that_is_not_text_is_said_so(tmp_path: Path) -> None:
    path = named("a", pairs=[raw.pair("general.architecture", raw.U8, 1)]).write(tmp_path / "f.gguf")
    with pytest.raises(GgufMetadataError, match=r"'general.architecture' at byte .*: UINT8, where a string is needed"):
        gguf_sd_loader(path)


def test_text_and_diffusion_models_are_told_apart_by_their_tensors(tmp_path: Path) -> None:
    text = named("token_embd.weight", "blk.0.attn_q.weight").write(tmp_path / "text.gguf")
    vision = named("v.patch_embd.weight", "v.blk.0.ln1.weight").write(tmp_path / "vision.gguf")
    diffusion = named("double_blocks.0.img_attn.qkv.weight").write(tmp_path / "diffusion.gguf")
    assert set(gguf_sd_loader(text, is_text_model=True)[0]) == {"token_embd.weight", "blk.0.attn_q.weight"}
    assert len(gguf_sd_loader(vision, is_text_model=True)[0]) == 2
    original = named("encoder.block.0.layer.0.SelfAttention.q.weight").write(tmp_path / "original.gguf")
    assert len(gguf_sd_loader(original, is_text_model=True)[0]) == 1
    with pytest.raises(GgufKeyError, match="a text encoder, not a diffusion model; choose it in a loader of text"):
        gguf_sd_loader(text)
    with pytest.raises(GgufKeyError, match="a diffusion model, not a text encoder; choose it in a loader of diff"):
        gguf_sd_loader(diffusion, is_text_model=True)
