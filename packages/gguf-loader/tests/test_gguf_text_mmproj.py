from __future__ import annotations

import logging
from pathlib import Path

import gguf_convert as convert
import pytest
import torch

from gguf_loader import GgufError, GgufPairingError, load_text_encoder, read_header
from gguf_loader.text._components import component_of
from gguf_loader.text._mmproj import find_mmproj, model_name

WIDTH = 16


def text_encoder(path: Path, architecture: str = "qwen2vl", width: int = WIDTH) -> Path:
    tensors = {"token_embd.weight": torch.zeros(8, 4)}
    return convert.write(path, architecture, tensors, {f"{architecture}.embedding_length": width})


def projector(path: Path, kind: str = "qwen2.5vl_merger", width: int = WIDTH, type_: str | None = "mmproj") -> Path:
    metadata: dict[str, object] = {"clip.projector_type": kind, "clip.vision.projection_dim": width}
    if type_ is not None:
        metadata["general.type"] = type_
    return convert.write(path, "clip", {"v.patch_embd.weight": torch.zeros(2, 3, 4, 4)}, metadata)


def found(path: Path, explicit: Path | None = None) -> str | None:
    header = read_header(path)
    pair = find_mmproj(header, component_of(header), explicit)
    return None if pair is None else Path(pair.path).name


@pytest.mark.parametrize(
    "name",
    [
        "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf",
        "mmproj-Qwen2.5-VL-7B-Instruct-BF16.gguf",
        "Qwen2.5-VL-7B-Instruct-mmproj-f32.gguf",
        "qwen2.5-vl-7b-instruct.mmproj-Q8_0.gguf",
        "mmproj_Qwen2.5_VL_7B_Instruct_UD-Q4_K_XL.GGUF",
    ],
)
def test_a_projector_is_found_by_the_name_of_the_model(tmp_path: Path, name: str) -> None:
    path = text_encoder(tmp_path / "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf")
    projector(tmp_path / "mmproj-Qwen2.5-VL-3B-Instruct-f16.gguf")
    projector(tmp_path / name)
    assert found(path) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gemma-3-12b-it-i1-IQ3_XXS", "mmproj-gemma-3-12b-it-bf16"),
        ("Qwen3-VL-4B-Instruct.Q8_0", "mmproj-Qwen3-VL-4B-Instruct-F16"),
        ("umt5-xxl-encoder-Q5_K_M", "umt5_xxl"),
        ("model-MXFP4_MOE", "mmproj-model-f16"),
        ("m-TQ1_0", "m-iq4_nl"),
    ],
)
def test_what_a_name_says_of_quantisation_and_purpose_is_not_its_model(one: str, other: str) -> None:
    assert model_name(f"{one}.gguf") == model_name(f"{other}.gguf")


@pytest.mark.parametrize(
    ("one", "other"), [("gemma-3-12b-it", "gemma-3-4b-it"), ("Qwen2.5-VL-7B", "Qwen2.5-VL-3B"), ("q4", "qwen4")]
)
def test_different_models_have_different_names(one: str, other: str) -> None:
    assert model_name(f"{one}-Q4_K_M.gguf") != model_name(f"mmproj-{other}-f16.gguf")


def test_an_explicit_projector_wins_over_names_and_folders(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    projector(tmp_path / "mmproj-Sage-f16.gguf")
    (tmp_path / "elsewhere").mkdir()
    assert found(path, projector(tmp_path / "elsewhere" / "any.gguf")) == "any.gguf"


def test_an_explicit_projector_must_be_one_and_must_fit(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    with pytest.raises(GgufPairingError, match="not a vision projector; name the mmproj file made for"):
        found(path, path)
    with pytest.raises(GgufPairingError, match="a projector of type 'gemma3', which does not belong to qwen2vl"):
        found(path, projector(tmp_path / "g.gguf", "gemma3"))
    with pytest.raises(GgufPairingError, match="projects to 8 features, where the text encoder has 16"):
        found(path, projector(tmp_path / "w.gguf", width=8))
    with pytest.raises(FileNotFoundError):
        found(path, tmp_path / "none.gguf")


def test_two_projectors_of_the_name_are_ambiguous(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    projector(tmp_path / "mmproj-Sage-f16.gguf")
    projector(tmp_path / "mmproj-Sage-bf16.gguf")
    with pytest.raises(GgufPairingError, match=r"have its name: mmproj-Sage-bf16.gguf, mmproj-Sage-f16.gguf; pass"):
        found(path)


@pytest.mark.parametrize("name", ["mmproj-F16.gguf", "mmproj-model-f16.gguf", "vision-tower.gguf"])
def test_a_projector_without_the_name_is_found_by_what_it_says_of_itself(tmp_path: Path, name: str) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    text_encoder(tmp_path / "Other-Q8_0.gguf")
    projector(tmp_path / "gemma.gguf", "gemma3")
    projector(tmp_path / "wide.gguf", width=32)
    projector(tmp_path / name)
    assert found(path) == name


def test_two_projectors_that_say_so_are_ambiguous(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    projector(tmp_path / "a.gguf")
    projector(tmp_path / "b.gguf", type_=None)
    with pytest.raises(GgufPairingError, match=r"2 vision projectors say that they are .*: a.gguf, b.gguf"):
        found(path)


def test_a_projector_named_for_another_model_is_never_taken(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    projector(tmp_path / "mmproj-Other-f16.gguf")
    assert found(path) is None


def test_a_projector_of_the_name_that_does_not_fit_is_not_taken(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    projector(tmp_path / "mmproj-Sage-f16.gguf", width=8)
    assert found(path) is None


def test_text_encoders_that_cannot_see_look_for_nothing(tmp_path: Path) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf", "qwen3")
    (tmp_path / "mmproj-Sage-f16.gguf").write_bytes(b"not even a file of this kind")
    assert found(path) is None


def test_a_damaged_neighbour_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    projector(tmp_path / "mmproj-f16.gguf")
    with caplog.at_level(logging.WARNING, "gguf_loader"):
        assert found(path) == "mmproj-f16.gguf"
    assert "not considered as a vision projector:" in caplog.text
    assert "broken.gguf: version at byte 4" in caplog.text


def test_a_neighbour_that_cannot_be_opened_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "mmproj-Sage-f32.gguf").symlink_to(tmp_path / "gone.gguf")
    projector(tmp_path / "mmproj-f16.gguf")
    with caplog.at_level(logging.WARNING, "gguf_loader"):
        assert found(path) == "mmproj-f16.gguf"
    assert "folder.gguf" in caplog.text
    assert "mmproj-Sage-f32.gguf" in caplog.text


def test_a_load_takes_the_pair_the_text_alone_or_what_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = text_encoder(tmp_path / "Sage-Q4_0.gguf")
    with caplog.at_level(logging.INFO, "gguf_loader"):
        assert load_text_encoder(path).projector is None
    assert "no vision projector lies beside it; it will read text alone" in caplog.text
    pair = projector(tmp_path / "mmproj-Sage-f16.gguf")
    both = load_text_encoder(path)
    assert both.projector is not None
    assert set(both.state_dict) == {"model.embed_tokens.weight", "visual.patch_embed.proj.weight"}
    assert set(load_text_encoder(path, mmproj=pair).state_dict) == set(both.state_dict)
    assert set(load_text_encoder(path, mmproj=None).state_dict) == {"model.embed_tokens.weight"}
    with pytest.raises(GgufError, match="b'noth' instead of b'GGUF'; choose a GGUF file"):
        (tmp_path / "no.gguf").write_bytes(b"nothing")
        load_text_encoder(path, mmproj=tmp_path / "no.gguf")
