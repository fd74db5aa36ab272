from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf_convert as convert
import pytest
import torch

from gguf_loader import GgufError, GgufHeader, GgufMetadataError, GgufTokenizerError, read_header, rebuild_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = [
    "a cat on the mat", "The quick brown fox jumps over the lazy dog.", "a photo of an astronaut riding a horse",
    "two   spaces,\ttabs and\nlines", "naïve café, Straße, ﬁne ½ ①", "猫と犬", "emoji 😀!", "",
    " leading and trailing ", "weights: 0.5, 1e-6 (very detailed:1.2)", "UPPER lower MiXeD", "don't, we'll, it's",
]  # fmt: skip
CORPUS = [text for text in TEXTS if text] * 30 + [f"the {a} {b} of a photo" for a in TEXTS[0].split() for b in "xyz"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write_vocabulary(folder: Path, metadata: Mapping[str, Any]) -> GgufHeader:
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return read_header(convert.write(folder / "vocabulary.gguf", "t5encoder", {"t": torch.zeros(1)}, named))


def trained(model_type: str, **options: Any) -> Any:
    """A sentencepiece processor of a small vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=options.pop("vocab_size", 120),
        model_type=model_type, hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def type_of(processor: Any, index: int) -> int:
    for question, kind in (("unknown", UNKNOWN), ("control", CONTROL), ("unused", UNUSED), ("byte", BYTE)):
        if getattr(processor, f"is_{question}")(index):
            return kind
    return NORMAL


def as_converted(processor: Any, pad_to: int = 0) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes for a sentencepiece model, padded as the embedding is."""
    count = processor.get_piece_size()
    missing = range(count, pad_to)
    return {
        "model": "t5",
        "tokens": [processor.id_to_piece(index) for index in range(count)] + [f"[PAD{index}]" for index in missing],
        "scores": [processor.get_score(index) for index in range(count)] + [-10_000.0 for _ in missing],
        "token_type": [type_of(processor, index) for index in range(count)] + [UNUSED for _ in missing],
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "eos_token_id": processor.eos_id(),
        "unknown_token_id": processor.unk_id(),
    }


def charsmap_of(processor: Any) -> bytes:
    """Field 2 of the normalizer, field 3 of the model, by a small reading of the wire format."""
    return fields(fields(processor.serialized_model_proto())[3][0])[2][0]


def fields(message: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, end = varint(message, at)
        elif kind == 2:
            length, at = varint(message, at)
            end = at + length
        else:
            end = at + (4 if kind == 5 else 8)
        found.setdefault(tag >> 3, []).append(message[at:end])
        at = end
    return found


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_a_unigram_model_comes_back_token_for_token(tmp_path: Path, byte_fallback: bool) -> None:
    size = 400 if byte_fallback else 120
    original = trained("unigram", normalization_rule_name="nmt_nfkc", byte_fallback=byte_fallback, vocab_size=size)
    charsmap = charsmap_of(original)
    header = write_vocabulary(tmp_path, as_converted(original) | {"precompiled_charsmap": charsmap})
    rebuilt = rebuild_tokenizer(header)
    assert (rebuilt.kind, rebuilt.vocabulary) == ("sentencepiece", original.get_piece_size())
    again = sentencepiece.SentencePieceProcessor(model_proto=rebuilt.data)
    assert [again.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]
    assert (again.eos_id(), again.unk_id(), again.pad_id()) == (original.eos_id(), original.unk_id(), -1)
    for index in range(original.get_piece_size()):
        assert again.id_to_piece(index) == original.id_to_piece(index)
        assert again.get_score(index) == original.get_score(index)
        assert type_of(again, index) == type_of(original, index)


def test_the_charsmap_of_the_original_is_what_normalises(tmp_path: Path) -> None:
    """Without it, full-width letters, ligatures and fractions reach the vocabulary as they are."""
    original = trained("unigram", normalization_rule_name="nmt_nfkc")
    text = "ﬁne ½ Ｆｕｌｌ"
    plain = rebuild_tokenizer(write_vocabulary(tmp_path, as_converted(original)))
    assert sentencepiece.SentencePieceProcessor(model_proto=plain.data).encode(text) != original.encode(text)


def test_the_padding_of_the_embedding_is_left_out_and_unused_tokens_are_not(tmp_path: Path) -> None:
    original = trained("unigram", normalization_rule_name="identity")
    count = original.get_piece_size()
    metadata = as_converted(original, pad_to=count + 7)
    assert rebuild_tokenizer(write_vocabulary(tmp_path, metadata)).vocabulary == count
    metadata["tokens"][-1] = "<extra>"
    assert rebuild_tokenizer(write_vocabulary(tmp_path, metadata)).vocabulary == count + 7


def test_an_unknown_token_that_is_typed_as_control_is_found_by_its_number(tmp_path: Path) -> None:
    """Phi-3's file: added tokens are all control tokens, and the padding of the embedding is typed as unknown."""
    original = trained("unigram", normalization_rule_name="identity")
    metadata = as_converted(original, pad_to=original.get_piece_size() + 5)
    metadata["token_type"][original.unk_id()] = CONTROL
    metadata["token_type"][-5:] = [UNKNOWN] * 5
    again = sentencepiece.SentencePieceProcessor(
        model_proto=rebuild_tokenizer(write_vocabulary(tmp_path, metadata)).data
    )
    assert again.is_unknown(original.unk_id())
    assert [again.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def test_a_bpe_model_comes_back_as_gemma_and_llama_write_it(tmp_path: Path) -> None:
    original = trained(
        "bpe", vocab_size=420, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
    )  # fmt: skip
    metadata = as_converted(original) | {
        "model": "llama", "add_space_prefix": False, "bos_token_id": 2, "padding_token_id": 0,
    }  # fmt: skip
    del metadata["remove_extra_whitespaces"]
    again = sentencepiece.SentencePieceProcessor(
        model_proto=rebuild_tokenizer(write_vocabulary(tmp_path, metadata)).data
    )
    assert [again.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]
    assert (again.bos_id(), again.eos_id(), again.pad_id(), again.unk_id()) == (2, 1, 0, 3)


def byte_level_bpe() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(gguf_pattern()), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", "[INST]"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(CORPUS, trainer)
    return model


def gguf_pattern() -> str:
    from gguf_loader.text._tekken import PATTERN

    return PATTERN


def as_tekken(model: Any, special: int = 4) -> dict[str, Any]:
    tokens = [model.id_to_token(index) for index in range(model.get_vocab_size())]
    types = [CONTROL if index < special else NORMAL for index in range(len(tokens))]
    return {"model": "gpt2", "pre": "tekken", "tokens": tokens, "token_type": types}


def test_a_tekken_vocabulary_comes_back_as_another_reader_reads_it(tmp_path: Path) -> None:
    converter = pytest.importorskip("transformers.integrations.mistral.tokenizer").MistralConverter
    original = byte_level_bpe()
    rebuilt = rebuild_tokenizer(write_vocabulary(tmp_path, as_tekken(original)))
    assert (rebuilt.kind, rebuilt.vocabulary) == ("tekken", original.get_vocab_size())
    (tmp_path / "tekken.json").write_bytes(rebuilt.data)
    again = converter(str(tmp_path / "tekken.json")).converted()
    assert again.get_vocab() == original.get_vocab()
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=False).ids == original.encode(text).ids


def test_tekken_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    original = byte_level_bpe()
    padded = as_tekken(original)
    count = len(padded["tokens"])
    padded["tokens"] += [f"[PAD{index}]" for index in range(count, count + 3)]
    padded["token_type"] += [UNUSED] * 3
    document = json.loads(rebuild_tokenizer(write_vocabulary(tmp_path, padded)).data)
    assert document["config"]["default_num_special_tokens"] == 4
    assert document["config"]["default_vocab_size"] == count
    assert [entry["token_str"] for entry in document["special_tokens"]] == ["<unk>", "<s>", "</s>", "[INST]"]
    assert [entry["rank"] for entry in document["vocab"]] == list(range(count - 4))
    every_byte = {base64.b64decode(entry["token_bytes"]) for entry in document["vocab"]}
    assert {bytes([byte]) for byte in range(256)} <= every_byte


SPM: dict[str, Any] = {
    "model": "t5", "tokens": ["<unk>", "a", "b"], "scores": [0.0, -1.0, -2.0], "token_type": [UNKNOWN, NORMAL, NORMAL],
}  # fmt: skip
TEKKEN: dict[str, Any] = {"model": "gpt2", "pre": "tekken", "tokens": ["<s>", "a", "b"], "token_type": [3, 1, 1]}
WRONG: list[tuple[dict[str, Any], type[GgufError], str]] = [
    ({"model": "bert"}, GgufTokenizerError, "model 'bert' with pre-tokenizer None is neither sentencepiece"),
    ({"model": "gpt2", "pre": "qwen2"}, GgufTokenizerError, "'gpt2' with pre-tokenizer 'qwen2' is neither"),
    ({"pre": "tekken"}, GgufMetadataError, r"metadata 'tokenizer.ggml.model': missing"),
    (SPM | {"tokens": [1, 2, 3]}, GgufMetadataError, r"'tokenizer.ggml.tokens': an array of INT32, not of strings"),
    (SPM | {"scores": [0.0]}, GgufTokenizerError, r"'tokenizer.ggml.scores': 1 scores for 3 tokens"),
    (SPM | {"token_type": [2, 1]}, GgufTokenizerError, r"'tokenizer.ggml.token_type': 2 types for 3 tokens"),
    (SPM | {"token_type": [2, 1, 300]}, GgufTokenizerError, "a type outside 1 to 6"),
    (SPM | {"token_type": [2.0, 1.0, 1.0]}, GgufMetadataError, r"token_type': an array of FLOAT32, not of integers"),
    (SPM | {"precompiled_charsmap": [1, 2]}, GgufTokenizerError, r"precompiled_charsmap': of INT32, where bytes are"),
    (SPM | {"token_type": [1, 1, 1]}, GgufTokenizerError, "0 unknown tokens, where sentencepiece needs one"),
    (SPM | {"token_type": [2, 2, 1]}, GgufTokenizerError, "2 unknown tokens, where sentencepiece needs one"),
    (
        SPM | {"token_type": [1, 1, 1], "unknown_token_id": 3},
        GgufTokenizerError,
        r"unknown_token_id': 3 is no token of 3",
    ),
    (SPM | {"tokens": ["<unk>", "a", "a"]}, GgufTokenizerError, "token 2 repeats b'a'"),
    (SPM | {"tokens": ["<unk>", "", "a"]}, GgufTokenizerError, "token 1 is empty"),
    (SPM | {"eos_token_id": 3}, GgufTokenizerError, r"'tokenizer.ggml.eos_token_id': 3 is no token of 3"),
    (TEKKEN | {"token_type": [3, 1, 3]}, GgufTokenizerError, r"token 2 \(b'b'\) is special among ordinary ones"),
    (TEKKEN | {"tokens": ["<s>", "a", "a b"]}, GgufTokenizerError, "token 2 .* is not spelled in byte-level"),
    (TEKKEN | {"tokens": [b"\xff<s>", b"a", b"b"]}, GgufTokenizerError, "token 0 .* is not spelled in byte-level"),
]


@pytest.mark.parametrize(("metadata", "error", "reason"), WRONG, ids=[reason for _, _, reason in WRONG])
def test_a_vocabulary_that_contradicts_itself_is_refused(
    tmp_path: Path, metadata: dict[str, Any], error: type[GgufError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        rebuild_tokenizer(write_vocabulary(tmp_path, metadata))
