"""A sentencepiece model, written in protobuf's wire format.

The message is small and its schema has not changed in years (sentencepiece_model.proto: ModelProto, TrainerSpec,
NormalizerSpec), so a dependency on protobuf, and on a schema compiled for the one version of it, is not worth having.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_VARINT, _BYTES, _FLOAT = 0, 2, 5
_BYTE_TYPE = 6
_DEFAULT_PIECES = {"begin": b"<s>", "end": b"</s>", "padding": b"<pad>"}


class Piece(NamedTuple):
    """One token: its UTF-8 text, score, and type (the numbers of GGUF are those of sentencepiece)."""

    text: bytes
    score: float
    type: int


class Normalizer(NamedTuple):
    """What is done to a text before it is split."""

    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


class SpecialIds(NamedTuple):
    """Ids of the tokens with a meaning; None where the vocabulary has none."""

    unknown: int
    begin: int | None
    end: int | None
    padding: int | None


def model_proto(pieces: Sequence[Piece], model_type: int, normalizer: Normalizer, special: SpecialIds) -> bytes:
    """Serialise a ModelProto that `SentencePieceProcessor(model_proto=...)` reads.

    Args:
        pieces: the vocabulary in the order of its ids.
        model_type: 1 for unigram, 2 for BPE.
        normalizer: how texts are normalised.
        special: which ids are special.
    """
    return b"".join(
        [
            *_pieces(pieces),
            _field(2, _trainer(pieces, model_type, special)),
            _field(3, _normalizer(normalizer)),
        ]
    )


def _pieces(pieces: Iterable[Piece]) -> list[bytes]:
    score = struct.Struct("<f")
    message = []
    for text, value, kind in pieces:
        body = b"".join((_field(1, text), b"\x15", score.pack(value), b"\x18", bytes((kind,))))
        message.append(_field(1, body))
    return message


def _trainer(pieces: Sequence[Piece], model_type: int, special: SpecialIds) -> bytes:
    byte_fallback = any(piece.type == _BYTE_TYPE for piece in pieces)
    message = [_number(3, model_type), _number(4, len(pieces)), _number(35, byte_fallback)]
    for offset, name in enumerate(SpecialIds._fields):
        number: int | None = getattr(special, name)
        text = _DEFAULT_PIECES[name] if number is None else pieces[number].text
        message += [_number(40 + offset, -1 if number is None else number), _field(45 + offset, text)]
    return b"".join(message)


def _normalizer(normalizer: Normalizer) -> bytes:
    name = b"precompiled" if normalizer.charsmap else b"identity"
    return b"".join(
        [
            _field(1, name),
            _field(2, normalizer.charsmap),
            _number(3, normalizer.add_dummy_prefix),
            _number(4, normalizer.remove_extra_whitespaces),
        ]
    )


def _field(number: int, data: bytes) -> bytes:
    return b"".join((_varint(number << 3 | _BYTES), _varint(len(data)), data))


def _number(number: int, value: int) -> bytes:
    # Protobuf writes a negative int32 as the 64-bit two's complement.
    return _varint(number << 3 | _VARINT) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*groups, value))
