"""Real files read as gguf-py reads them: every file under the folder that GGUF_FILES names.

The vocabularies in the source distribution of llama-cpp-python (vendor/llama.cpp/models) are a good choice: 19 files
of as many converters, one of them of version 2.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_loader import GgufArray, GgufHeader, GgufTokenizerError, open_gguf, read_header, rebuild_tokenizer

FOLDER = os.environ.get("GGUF_FILES")
FILES = sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILES, reason="GGUF_FILES names no folder with *.gguf files"),
]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def sentencepiece_pieces(header: GgufHeader, model: bytes) -> tuple[list[str], list[str]]:
    """The pieces of a rebuilt model, and the tokens of the file that it was rebuilt from."""
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = processor.get_piece_size()
    pieces = [processor.id_to_piece(index) for index in range(count)]
    return pieces, header.metadata.array("tokenizer.ggml.tokens").strings()[:count]


@every_file
def test_a_real_file_is_read_as_gguf_py_reads_it(path: Path) -> None:
    file = open_gguf(path)
    theirs = gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(file.header.metadata) == list(fields)
    assert file.header.version == theirs.fields["GGUF.version"].contents()
    for key, field in fields.items():
        ours, expected = file.header.metadata[key], field.contents()
        if not isinstance(ours, GgufArray):
            assert (ours, int(file.header.metadata.value_type(key))) == (expected, int(field.types[0]))
        elif len(ours):
            # Equal bit for bit, NaN included; gguf-py gives an empty array no type.
            assert int(ours.value_type) == int(field.types[1])
            assert np.array_equal(
                np.asarray(ours.tolist()), np.asarray(expected), equal_nan=ours.value_type.name[0] == "F"
            )
    assert list(file.header.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert file.header.tensors[tensor.name].shape == tuple(int(dim) for dim in reversed(tensor.shape))
        assert file.tensor_bytes(tensor.name).numpy().tobytes() == tensor.data.tobytes()


@every_file
def test_a_real_vocabulary_is_rebuilt_piece_for_piece_or_refused_by_name(path: Path) -> None:
    metadata = read_header(path).metadata
    model, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model in ("llama", "t5"):
        rebuilt = rebuild_tokenizer(read_header(path))
        pieces, tokens = sentencepiece_pieces(read_header(path), rebuilt.data)
        assert len(pieces) == rebuilt.vocabulary
        assert pieces == tokens
    elif (model, pre) != ("gpt2", "tekken"):
        with pytest.raises(GgufTokenizerError, match=f"{model!r} with pre-tokenizer {pre!r} is neither"):
            rebuild_tokenizer(read_header(path))
