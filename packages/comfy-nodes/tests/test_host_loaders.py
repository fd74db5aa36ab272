"""Loaders at their edges: incomplete checkpoints, folders of diffusers, text encoders of all formats, small VAEs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from host_testing import Host, comfyui, host, request, sized, write_model
from safetensors.torch import load_file, save_file

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host

SPEC = "npu:0,25%;npu:1,40%;cpu,*"


def latent() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_weight_dtype_that_there_is_not(host: Host) -> None:
    with pytest.raises(adapter.ModelFileError, match=r"unknown weight_dtype 'int3'; use one of default, fp8_e4m3fn"):
        adapter.load_diffusion_model(host.diffusion(), request(None), weight_dtype="int3")


@pytest.fixture
def bare_checkpoint(host: Host, tmp_path: Path) -> Path:
    """A checkpoint that is a diffusion model and nothing else."""
    write_model(host, "sd15")
    weights = load_file(host.models / "diffusion_models" / "tiny_sd15.safetensors")
    path = tmp_path / "bare.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}, path)
    return path


@pytest.mark.slow
def test_a_checkpoint_without_its_other_parts(host: Host, bare_checkpoint: Path) -> None:
    loaded = adapter.load_checkpoint(bare_checkpoint, request(SPEC), vae_request=request(SPEC))
    assert len(loaded.reports) == 1
    assert loaded.value.clip is None
    expected = host.sample(host.stock(host.models / "diffusion_models" / "tiny_sd15.safetensors"), "sd15")
    assert torch.equal(host.sample(loaded.value.model, "sd15"), expected)


@pytest.fixture
def diffusers_folder(host: Host, tmp_path: Path) -> Path:
    """The layout of diffusers, made of tiny files; the second of two names of a part is never the one that is read."""
    write_model(host, "sd15", "clip")
    parts = {
        "unet/diffusion_pytorch_model.fp16.safetensors": "diffusion_models/tiny_sd15.safetensors",
        "vae/diffusion_pytorch_model.safetensors": "vae/tiny_vae.safetensors",
        "text_encoder/model.safetensors": "text_encoders/tiny_clip_l.safetensors",
    }
    for name, file in parts.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(host.models / file)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("spec", [None, SPEC])
def test_a_folder_of_diffusers_is_what_the_stock_loader_makes_of_it(
    host: Host, diffusers_folder: Path, spec: str | None
) -> None:
    def made(model: Any, clip: Any, vae: Any) -> tuple[torch.Tensor, ...]:
        text = clip.encode_from_tokens(clip.tokenize("a cat"))
        return host.sample(model, "sd15"), text, vae.decode(latent())

    expected = made(*host.module("comfy.diffusers_load").load_diffusers(str(diffusers_folder)))
    host.free_all()
    loaded = adapter.load_diffusers(
        diffusers_folder, request(spec), clip_request=request(spec and "npu:2,50%;cpu,*", "npu:2"), vae_request=None
    )
    parts = loaded.value
    assert all(map(torch.equal, made(parts.model, parts.clip, parts.vae), expected))
    assert [bool(report.plan) for report in loaded.reports] == [bool(spec), bool(spec), False]
    assert str(parts.clip.patcher.load_device) == "npu:2"
    assert str(parts.vae.device) == "npu:0"


@pytest.fixture
def no_weights_are_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(host.module("comfy.utils"), "load_torch_file", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights_are_read")
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_without_a_part_is_refused_before_anything_is_loaded(
    host: Host, diffusers_folder: Path, part: str
) -> None:
    if part == "text_encoder_2":
        (diffusers_folder / part).mkdir()
    else:
        for file in (diffusers_folder / part).iterdir():
            file.unlink()
    with pytest.raises(adapter.ModelFileError, match=f"{part}: it has none of .*choose a complete folder"):
        adapter.load_diffusers(diffusers_folder, request(None))


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights_are_read")
def test_a_folder_with_a_part_that_was_cut_off_is_refused_before_anything_is_loaded(
    host: Host, diffusers_folder: Path
) -> None:
    file = diffusers_folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:-100])
    with pytest.raises(adapter.ModelFileError, match="ends 100 bytes before its header says"):
        adapter.load_diffusers(diffusers_folder, request(SPEC))


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights_are_read")
def test_a_device_of_another_part_that_is_not_there_is_refused_before_anything_is_loaded(
    host: Host, diffusers_folder: Path
) -> None:
    with pytest.raises(adapter.UnknownDeviceError, match="npu:9"):
        adapter.load_diffusers(diffusers_folder, request(None), vae_request=request(None, "npu:9"))


def test_a_file_that_becomes_broken_after_it_was_checked(host: Host, tmp_path: Path) -> None:
    from comfy_nodes.host.loaders._gguf import reload_gguf

    path = tmp_path / "cut.gguf"
    path.write_bytes(host.diffusion("packed").read_bytes()[:-4096])
    with pytest.raises(adapter.ModelFileError, match=r"cut\.gguf.*fetch or convert it again"):
        reload_gguf(str(path), {})


def write_encoder(path: Path, *, tokens: int = 0) -> Path:
    """One block of a T5 encoder; with a vocabulary of so many tokens."""
    writer = gguf.GGUFWriter(path, "t5encoder")
    if tokens:
        writer.add_tokenizer_model("t5")
        writer.add_token_list(["<pad>", "</s>", "<unk>", *(f"▁{index}" for index in range(tokens - 3))])
        writer.add_token_scores([0.0] * tokens)
        writer.add_token_types([3, 3, 2, *[1] * (tokens - 3)])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
    for name in ("attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"enc.blk.0.{name}.weight", np.eye(32, dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.ones((max(tokens, 4), 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_text_encoder_in_the_place_of_a_diffusion_model(host: Host, tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "t5.gguf")
    with pytest.raises(adapter.ModelFileError, match="a text encoder, not a diffusion model"):
        adapter.load_gguf_diffusion_model(path, request(None))


@pytest.mark.parametrize("tokens", [0, 8])
def test_the_tokenizer_goes_with_the_weights_where_the_file_has_one(host: Host, tmp_path: Path, tokens: int) -> None:
    from comfy_nodes.host.loaders._gguf import _text_encoder

    weights = _text_encoder(write_encoder(tmp_path / "t5.gguf", tokens=tokens))
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in weights
    assert ("spiece_model" in weights) == bool(tokens)
    if tokens:
        sentencepiece = pytest.importorskip("sentencepiece")
        model = sentencepiece.SentencePieceProcessor(model_proto=bytes(weights["spiece_model"].numpy()))
        assert model.get_piece_size() == tokens
        assert model.id_to_piece(4) == "▁1"


def test_a_broken_text_encoder_is_named(host: Host, tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "t5.gguf", tokens=8)
    writer = gguf.GGUFWriter(path, "llava")
    writer.add_tensor("weight", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(adapter.ModelFileError, match=r"t5\.gguf: a diffusion model, not a text encoder"):
        adapter.load_gguf_text_encoders([path], request(None))


def test_text_encoders_of_both_formats_are_read_side_by_side(host: Host, tmp_path: Path) -> None:
    from comfy_nodes.host.loaders._gguf import _text_encoder

    path = tmp_path / "plain.safetensors"
    save_file({"text_model.weight": torch.eye(2)}, path)
    assert _text_encoder(path).keys() == {"text_model.weight"}


@pytest.mark.parametrize("name", ["taesd", "taef1"])
def test_a_small_vae_by_its_name(host: Host, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    nodes = host.module("nodes")
    weights = load_file(host.models / "vae" / "tiny_vae.safetensors")
    monkeypatch.setattr(
        nodes.VAELoader, "load_taesd", staticmethod(lambda asked: {"taesd": weights, name: weights}[asked])
    )
    expected = host.module("comfy.sd").VAE(sd=dict(weights), device=torch.device("npu:0")).decode(latent())
    host.free_all()
    for spec in (None, "npu:1,100kb;cpu,*"):
        vae = adapter.load_vae(name, request(spec, "npu:1")).value
        assert vae.device == torch.device("npu:1")
        assert torch.equal(vae.decode(latent()), expected)


def test_a_file_that_is_no_image_encoder(host: Host) -> None:
    with pytest.raises(adapter.ModelFileError, match="image encoder"):
        adapter.load_clip_vision(host.diffusion(), request(None))


@pytest.mark.slow
def test_an_image_encoder_without_a_device_is_loaded_where_the_host_would(host: Host) -> None:
    write_model(host, "vision")
    path = host.models / "clip_vision" / "tiny_vision.safetensors"
    loaded = adapter.load_clip_vision(path, adapter.PlacementRequest())
    assert loaded.value.load_device == loaded.value.patcher.load_device == host.management.text_encoder_device()
    assert loaded.reports[0].plan is None


def test_a_packed_model_without_donors_is_cloned_onto_another_device(sized: Host, host: Host) -> None:
    pytest.importorskip("comfy_extras.nodes_multigpu", reason="this host has no multi-device nodes")
    model = adapter.load_gguf_diffusion_model(host.diffusion("packed"), request(None)).value
    expected = host.sample(model)
    clone = model.deepclone_multigpu(new_load_device=torch.device("npu:2"))
    assert clone.placement is None
    assert torch.equal(host.sample(clone), expected)
    assert host.used()[2] > 0
