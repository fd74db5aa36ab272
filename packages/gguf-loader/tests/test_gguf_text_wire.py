"""The sentencepiece model that is written, read back by the rules of protobuf's wire format alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguf_loader.text._sentencepiece import Normalizer, Piece, SpecialIds, model_proto

BYTES, INT32, FLOAT = "bytes", "int32", "float"


def fields(message: bytes) -> Iterator[tuple[int, str, object]]:
    """(number, wire kind, value) of each field: a key, then what its lowest three bits promise."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(message, at)
            # int32: negative numbers are written as 64-bit two's complement.
            yield key >> 3, INT32, value - (1 << 64) if value >> 63 else value
        elif kind == 2:
            size, at = varint(message, at)
            assert at + size <= len(message)
            yield key >> 3, BYTES, message[at : at + size]
            at += size
        else:
            assert kind == 5
            yield key >> 3, FLOAT, struct.unpack_from("<f", message, at)[0]
            at += 4


def varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def by_number(message: bytes) -> dict[int, object]:
    found = list(fields(message))
    assert len({number for number, _, _ in found}) == len(found)
    return {number: value for number, _, value in found}


TOKEN = st.binary(min_size=1, max_size=300)
PIECES = st.lists(
    st.builds(Piece, TOKEN, st.floats(width=32, allow_nan=False), st.integers(1, 6)), min_size=1, max_size=40
)
FLAGS = st.booleans()


@given(pieces=PIECES, kind=st.sampled_from([1, 2]), charsmap=st.binary(max_size=400), prefix=FLAGS, spaces=FLAGS)
@example(pieces=[Piece(b"x" * 127, 0.0, 1), Piece(b"x" * 128, -0.0, 6)], kind=1, charsmap=b"", prefix=True, spaces=True)
@settings(deadline=None)
def test_what_is_written_is_what_was_given(
    pieces: list[Piece], kind: int, charsmap: bytes, prefix: bool, spaces: bool
) -> None:
    special = SpecialIds(unknown=len(pieces) - 1, begin=None, end=0, padding=None)
    written = list(fields(model_proto(pieces, kind, Normalizer(charsmap, prefix, spaces), special)))
    assert [number for number, _, _ in written] == [1] * len(pieces) + [2, 3]
    bodies = [value for _, _, value in written]
    found = [by_number(body) for body in bodies if isinstance(body, bytes)]
    assert [Piece(one[1], one[2], one[3]) for one in found[:-2]] == pieces  # type: ignore[arg-type]
    trainer, normalizer = found[-2:]
    assert (trainer[3], trainer[4]) == (kind, len(pieces))
    assert trainer[35] == any(piece.type == 6 for piece in pieces)
    assert [trainer[number] for number in (40, 41, 42, 43)] == [len(pieces) - 1, -1, 0, -1]
    assert [trainer[number] for number in (45, 46, 47, 48)] == [pieces[-1].text, b"<s>", pieces[0].text, b"<pad>"]
    assert normalizer == {1: b"precompiled" if charsmap else b"identity", 2: charsmap, 3: prefix, 4: spaces}


@given(count=st.integers(1, 1 << 20))
@example(127)
@example(128)
@example(16_383)
@example(16_384)
@settings(deadline=None)
def test_numbers_of_any_size_are_read_back(count: int) -> None:
    pieces = [Piece(b"a", 0.0, 2)]
    special = SpecialIds(unknown=0, begin=0, end=None, padding=None)
    charsmap = bytes(count)
    (*_, last) = fields(model_proto(pieces, 1, Normalizer(charsmap, False, False), special))
    assert isinstance(last[2], bytes)
    assert by_number(last[2])[2] == charsmap


@pytest.mark.parametrize("byte_piece", [True, False])
def test_the_library_agrees(byte_piece: bool) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = [Piece(b"<unk>", 0.0, 2), Piece("▁héllo".encode(), -1.0, 1), Piece("▁".encode(), -3.0, 1)]
    pieces += [Piece(f"<0x{byte:02X}>".encode(), -9.0, 6) for byte in range(256)] if byte_piece else []
    special = SpecialIds(unknown=0, begin=None, end=None, padding=None)
    proto = model_proto(pieces, 1, Normalizer(b"", True, True), special)
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    assert processor.get_piece_size() == len(pieces)
    assert processor.encode("héllo", out_type=str) == ["▁héllo"]
    unknown = processor.encode("héllo ☃")
    assert (0 in unknown) is not byte_piece
