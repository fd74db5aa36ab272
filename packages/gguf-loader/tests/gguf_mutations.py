"""Seeded damage to GGUF files, shared by the test and by the long run in tools/bench."""

from __future__ import annotations

import random
import struct

NASTY = (0, 1, 2, 7, 8, 9, 31, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four damages: flipped bits, nasty numbers, moved, repeated, cut and inserted bytes."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if damaged:
            rng.choice(_DAMAGES)(damaged, rng)
    return bytes(damaged)


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _nasty_number(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    size, code = rng.choice(((4, "<I"), (8, "<Q")))
    number = rng.choice(NASTY) % (1 << 8 * size)
    data[at : at + size] = struct.pack(code, number)


def _near_number(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(max(1, len(data) - 8))
    number = int.from_bytes(data[at : at + 8], "little") + rng.choice((-32, -8, -1, 1, 8, 32))
    data[at : at + 8] = (number % (1 << 64)).to_bytes(8, "little")


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 17)]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randrange(1, 17))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randrange(1, 65)]


def _overwrite(data: bytearray, rng: random.Random) -> None:
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[source : source + rng.randrange(1, 33)]
    data[target : target + len(piece)] = piece


_DAMAGES = (_flip_bit, _set_byte, _nasty_number, _near_number, _cut, _delete, _insert, _repeat, _overwrite)
