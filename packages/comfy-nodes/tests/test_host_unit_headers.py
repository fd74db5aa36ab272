"""Headers of model files: what can be known, and refused, before a byte of weights is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_gguf import write_gguf
from safetensors.torch import save_file

from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host.placing._headers import diffusion_prefix, has_header, read_model_header

WEIGHTS = {"blocks.0.q.weight": torch.zeros(64, 64), "blocks.0.q.bias": torch.zeros(64)}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", WEIGHTS)


def test_shapes_and_bytes_of_a_plain_file(plain: Path) -> None:
    assert read_model_header(plain).sizes == {"blocks.0.q.weight": ((64, 64), 16384), "blocks.0.q.bias": ((64,), 256)}


def test_shapes_and_packed_bytes_of_a_quantised_file(packed: Path) -> None:
    assert read_model_header(packed).sizes == {
        "blocks.0.q.weight": ((64, 64), 64 * 2 * 34),
        "blocks.0.q.bias": ((64,), 256),
    }


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model.sft", "model.safetensors.index.json"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=name) as error:
        read_model_header(tmp_path / name)
    assert error.value.path.endswith(name)


@pytest.mark.parametrize("missing", [1, 100, 16000])
def test_a_file_that_was_cut_off_says_by_how_much(plain: Path, missing: int) -> None:
    whole = plain.read_bytes()
    plain.write_bytes(whole[:-missing])
    with pytest.raises(ModelFileError, match=f"ends {missing} bytes before"):
        read_model_header(plain)


@pytest.mark.parametrize("content", [b"", b"\x00", b"GGUF", b"<html>not found</html>", b"\xff" * 64])
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=name):
        read_model_header(path)


def test_pickled_files_have_no_header(tmp_path: Path) -> None:
    for name in ("model.ckpt", "model.pt", "model.bin"):
        assert not has_header(tmp_path / name)
        with pytest.raises(ModelFileError, match="says nothing"):
            read_model_header(tmp_path / name)


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_loaded_as_it_is_stored_unless_another_type_is_asked_for(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.zeros(8, 8).to(dtype), "a.bias": torch.zeros(8)}, path)
    is_half = dtype in (torch.float16, torch.bfloat16)
    assert read_model_header(path).loaded_sizes() == (read_model_header(path).sizes if is_half else None)
    asked = read_model_header(path).loaded_sizes(1)
    assert asked == (None if dtype.itemsize == 1 else {"a.weight": ((8, 8), 64), "a.bias": ((8,), 8)})


@pytest.mark.parametrize("element_bytes", [None, 1])
def test_packed_weights_are_loaded_as_they_are_stored(packed: Path, element_bytes: int | None) -> None:
    assert read_model_header(packed).loaded_sizes(element_bytes) == read_model_header(packed).sizes


def test_of_a_model_without_matrices_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "scales.safetensors"
    save_file({"a.bias": torch.zeros(8).half()}, path)
    assert read_model_header(path).loaded_sizes() is None


def test_of_a_model_in_several_files_nothing_is_known(plain: Path) -> None:
    index = plain.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(WEIGHTS, plain.name)}))
    assert read_model_header(index).sizes == read_model_header(plain).sizes
    assert read_model_header(index).loaded_sizes() is None


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "net."])
def test_the_diffusion_model_of_a_checkpoint_is_found(prefix: str) -> None:
    sizes = {f"{prefix}blocks.0.q.weight": ((4, 4), 32), "first_stage_model.conv.weight": ((4, 4), 32)}
    assert diffusion_prefix(sizes) == prefix
