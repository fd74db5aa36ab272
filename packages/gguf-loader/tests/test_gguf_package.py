from __future__ import annotations

import doctest
import inspect
import struct
from pathlib import Path

import gguf_bytes as raw
import pytest

import gguf_loader

README = Path(__file__).parents[1] / "README.md"

# What users may import. A name that goes is a major version; add new ones here on purpose.
PUBLIC = """
Backend DequantConfig GGML_TYPES GgmlType GgufArray GgufCheckpoint GgufConv1d GgufConv2d GgufConv3d GgufEmbedding
GgufError GgufFile GgufFormatError GgufHeader GgufKeyError GgufLinear GgufLoraError GgufMetadata GgufMetadataError
GgufModelError GgufPackedError GgufPairingError GgufTextEncoder GgufTokenizerError GgufTypeError GgufUnsupportedError
LoadReport LowRank MetadataValue PackedTensor RebuiltTokenizer ScratchPool TensorInfo ValueType add_lora configure
dequantize get_gguf_metadata gguf_sd_loader load_gguf load_packed load_text_encoder lora_from_state_dict
lora_strengths open_gguf packed_embedding packed_layers packed_linear read_header rebuild_tokenizer remove_lora
set_lora_strength type_by_id type_by_name
"""


def test_the_public_names_are_these() -> None:
    assert sorted(gguf_loader.__all__) == PUBLIC.split()
    assert len(set(gguf_loader.__all__)) == len(gguf_loader.__all__)


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
