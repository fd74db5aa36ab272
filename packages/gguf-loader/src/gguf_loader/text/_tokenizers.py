"""Tokenizers rebuilt from the vocabulary in a GGUF file, for hosts whose tokenizer is not among their own files.

Two kinds are enough: a sentencepiece model (UMT5, Gemma, Llama 2) and Mistral's tekken. The other text encoders use a
vocabulary that hosts ship. Nothing is read before somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gguf_loader._errors import GgufTokenizerError, quoted
from gguf_loader.file._format import ValueType
from gguf_loader.file._header import GgufHeader

from ._sentencepiece import Normalizer, Piece, SpecialIds, model_proto
from ._tekken import PATTERN, tekken_json

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True, slots=True)
class RebuiltTokenizer:
    """A tokenizer in the format of its library.

    Attributes:
        kind: `sentencepiece` (a serialised ModelProto) or `tekken` (Mistral's JSON).
        data: the file that the library reads.
        vocabulary: number of tokens, without those that only pad the embedding.
    """

    kind: Literal["sentencepiece", "tekken"]
    data: bytes
    vocabulary: int


def rebuild_tokenizer(header: GgufHeader) -> RebuiltTokenizer:
    """Read the vocabulary of a file and write it as the tokenizer that it came from.

    Tokens that a converter appended to fill the embedding (`[PAD123]`, unused) are left out again.

    Raises:
        GgufTokenizerError: the file's tokenizer is of another kind, or its lists contradict each other.
        GgufMetadataError: a list is missing or of another type.
        GgufFormatError: the file changed since its header was read.
    """
    metadata = header.metadata
    model = metadata.text(f"{KEY}model")
    if model in ("t5", "llama"):
        return _sentencepiece(header, UNIGRAM if model == "t5" else BPE)
    pre = metadata.text(f"{KEY}pre") if f"{KEY}pre" in metadata else None
    if model == "gpt2" and pre == "tekken":
        return _tekken(header)
    raise GgufTokenizerError(
        f"model {quoted(model)} with pre-tokenizer {quoted(pre)} is neither sentencepiece ('t5', 'llama') nor 'gpt2' "
        "with 'tekken'",
        path=header.path,
        field=f"metadata '{KEY}model'",
        remedy="use the tokenizer that comes with the original checkpoint",
    )


def _sentencepiece(header: GgufHeader, model_type: int) -> RebuiltTokenizer:
    metadata = header.metadata
    tokens, types = _tokens(header)
    scores = metadata.array(f"{KEY}scores").numpy().tolist()
    if len(scores) < len(tokens):
        raise _contradiction(header, "scores", f"{len(scores)} scores for {len(tokens)} tokens")
    unknown = _unknown(header, types)
    types[unknown] = UNKNOWN
    pieces = [Piece(token, score, type_) for token, score, type_ in zip(tokens, scores, types, strict=False)]
    normalizer = Normalizer(
        charsmap=_charsmap(header),
        add_dummy_prefix=_flag(header, "add_space_prefix", True),
        remove_extra_whitespaces=_flag(header, "remove_extra_whitespaces", model_type == UNIGRAM),
    )
    special = SpecialIds(
        unknown=unknown,
        begin=_id(header, "bos_token_id", len(tokens)),
        end=_id(header, "eos_token_id", len(tokens)),
        padding=_id(header, "padding_token_id", len(tokens)),
    )
    return RebuiltTokenizer("sentencepiece", model_proto(pieces, model_type, normalizer, special), len(pieces))


def _charsmap(header: GgufHeader) -> bytes:
    if not _has(header, "precompiled_charsmap"):
        return b""
    array = header.metadata.array(f"{KEY}precompiled_charsmap")
    if array.value_type not in (ValueType.UINT8, ValueType.INT8):
        raise _contradiction(header, "precompiled_charsmap", f"of {array.value_type.name}, where bytes are needed")
    return array.numpy().tobytes()


def _unknown(header: GgufHeader, types: Sequence[int]) -> int:
    """The token for what the vocabulary cannot spell; converters may type it as a control token and name its number."""
    found = [index for index, type_ in enumerate(types) if type_ == UNKNOWN]
    named = _id(header, "unknown_token_id", len(types))
    if not found and named is not None:
        return named
    if len(found) != 1:
        raise _contradiction(header, "token_type", f"{len(found)} unknown tokens, where sentencepiece needs one")
    return found[0]


def _tekken(header: GgufHeader) -> RebuiltTokenizer:
    tokens, types = _tokens(header)
    special = next((index for index, type_ in enumerate(types) if type_ == NORMAL), len(types))
    late = next((index for index in range(special, len(types)) if types[index] != NORMAL), None)
    if late is not None:
        # Tekken numbers ordinary tokens from the last special one on: one among them would shift all after it.
        raise _contradiction(
            header, "token_type", f"token {late} ({quoted(tokens[late])}) is special among ordinary ones"
        )
    return RebuiltTokenizer("tekken", tekken_json(tokens[:special], tokens[special:], PATTERN), len(tokens))


def _tokens(header: GgufHeader) -> tuple[list[bytes], list[int]]:
    """Tokens and their types, without those that pad the embedding at the end (unused; older converters: unknown)."""
    tokens = header.metadata.array(f"{KEY}tokens").raw_strings()
    types = list(header.metadata.array(f"{KEY}token_type").integers())
    if len(tokens) != len(types):
        raise _contradiction(header, "token_type", f"{len(types)} types for {len(tokens)} tokens")
    if any(not NORMAL <= type_ <= BYTE for type_ in types):
        raise _contradiction(header, "token_type", f"a type outside {NORMAL} to {BYTE}")
    count = len(tokens)
    while count and types[count - 1] in (UNUSED, UNKNOWN) and tokens[count - 1] == b"[PAD%d]" % (count - 1):
        count -= 1
    _refuse_empty_or_double(header, tokens[:count])
    return tokens[:count], types[:count]


def _refuse_empty_or_double(header: GgufHeader, tokens: Sequence[bytes]) -> None:
    if len(set(tokens)) == len(tokens) and b"" not in tokens:
        return
    seen: set[bytes] = set()
    for index, token in enumerate(tokens):
        if not token or token in seen:
            what = f"repeats {quoted(token)}" if token else "is empty"
            raise _contradiction(header, "tokens", f"token {index} {what}")
        seen.add(token)


def _has(header: GgufHeader, name: str) -> bool:
    return f"{KEY}{name}" in header.metadata


def _flag(header: GgufHeader, name: str, default: bool) -> bool:
    return header.metadata.flag(f"{KEY}{name}") if _has(header, name) else default


def _id(header: GgufHeader, name: str, count: int) -> int | None:
    if not _has(header, name):
        return None
    number = header.metadata.integer(f"{KEY}{name}")
    if not 0 <= number < count:
        raise _contradiction(header, name, f"{number} is no token of {count}")
    return number


def _contradiction(header: GgufHeader, name: str, reason: str) -> GgufTokenizerError:
    return GgufTokenizerError(
        reason,
        path=header.path,
        field=f"metadata '{KEY}{name}'",
        remedy="convert the text encoder again, or use the tokenizer of the original checkpoint",
    )
