from __future__ import annotations

import doctest
import inspect
import struct
from pathlib import Path

import gguf_bytes as raw
import pytest

import gguf_loader

README = Path(__file__).parents[1] / "README.md"


def test_every_public_function_and_class_says_what_it_does() -> None:
    for name in gguf_loader.__all__:
        thing = getattr(gguf_loader, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__module__.startswith("gguf_loader.")
            assert len(inspect.getdoc(thing) or "") > 30, name


def test_every_error_is_of_one_tree() -> None:
    errors = [getattr(gguf_loader, name) for name in gguf_loader.__all__ if name.endswith("Error")]
    assert all(issubclass(error, gguf_loader.GgufError) for error in errors)


def test_the_readme_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = raw.File(
        pairs=[
            raw.pair("general.architecture", raw.STRING, "flux"),
            raw.pair("general.quantization_version", raw.U32, 2),
            raw.pair("tokenizer.ggml.tokens", raw.ARRAY, raw.array(raw.STRING, ["a", "b"])),
        ],
        tensors=[
            raw.Tensor("img_in.weight", (256, 4), 12, bytes(576)),
            raw.Tensor("img_in.bias", (4,), raw.F32, struct.pack("<4f", 0, 1, 2, 3)),
        ],
    )
    monkeypatch.chdir(tmp_path)
    file.write(tmp_path / "flux-tiny-Q4_K_S.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.bytes()[:700])
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0
