"""Mistral's tekken vocabulary, back from the spelling that GPT-2 gave to byte-level tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from gguf_loader._errors import GgufTokenizerError, quoted

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How tekken splits a text before it merges bytes."""


def tekken_json(special: Sequence[bytes], ordinary: Sequence[bytes], pattern: str) -> bytes:
    """A `tekken.json` of the special tokens, which have the first ids, and the ordinary ones after them.

    Args:
        special: control tokens, UTF-8.
        ordinary: byte-level tokens as GPT-2 spells them, UTF-8.
        pattern: the pre-tokenizer.

    Raises:
        GgufTokenizerError: a special token is not UTF-8, or a character of an ordinary one stands for no byte.
    """
    byte_of = _byte_of_character()
    vocabulary = []
    for rank, token in enumerate(ordinary):
        data = _bytes_of(token, byte_of, len(special) + rank)
        vocabulary.append(
            {"rank": rank, "token_bytes": base64.b64encode(data).decode("ascii"), "token_str": _readable(data)}
        )
    document = {
        "config": {
            "pattern": pattern,
            "num_vocab_tokens": len(ordinary),
            "default_vocab_size": len(special) + len(ordinary),
            "default_num_special_tokens": len(special),
            "version": "v3",
        },
        "vocab": vocabulary,
        "special_tokens": [
            {"rank": rank, "token_str": _text_of(token, rank), "is_control": True} for rank, token in enumerate(special)
        ],
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling: printable Latin-1 stands for itself, every other byte for a character from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _bytes_of(token: bytes, byte_of: dict[str, int], index: int) -> bytes:
    try:
        return bytes([byte_of[character] for character in _text_of(token, index)])
    except KeyError as error:
        raise _misspelled(token, index) from error


def _text_of(token: bytes, index: int) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError as error:
        raise _misspelled(token, index) from error


def _misspelled(token: bytes, index: int) -> GgufTokenizerError:
    return GgufTokenizerError(
        f"token {index} ({quoted(token)}) is not spelled in byte-level characters",
        field="metadata 'tokenizer.ggml.tokens'",
        remedy="convert the text encoder again, or use the tokenizer of the original checkpoint",
    )


def _readable(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
