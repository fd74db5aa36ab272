from __future__ import annotations

import gguf
import pytest

from gguf_loader import GGML_TYPES, GgmlType, GgufTypeError, type_by_id, type_by_name

# Where the installed gguf package and the C library (ggml 0.25.3) differ, the C library is the format.
GGUF_PY_DIFFERS = {"Q8_1"}
GGUF_PY_LACKS = {"Q2_0"}


THEIRS = gguf.GGMLQuantizationType.__members__


@pytest.mark.parametrize("kind", [kind for kind in GGML_TYPES.values() if kind.name in THEIRS], ids=str)
def test_every_type_has_the_id_and_block_of_gguf_py(kind: GgmlType) -> None:
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert kind.id == theirs
    if kind.name not in GGUF_PY_DIFFERS:
        assert (kind.block_size, kind.type_size) == gguf.GGML_QUANT_SIZES[theirs]


def test_no_type_of_gguf_py_is_missing_and_none_is_invented() -> None:
    assert set(THEIRS) <= set(GGML_TYPES) <= set(THEIRS) | GGUF_PY_LACKS


def test_the_types_that_gguf_py_has_wrong_or_not_at_all_are_those_of_the_c_library() -> None:
    # block_q8_1: two halves and 32 bytes; block_q2_0: one half and 64 weights of 2 bits.
    assert type_by_name("Q8_1").type_size == 2 + 2 + 32
    assert type_by_name("Q2_0") == GgmlType("Q2_0", 42, 64, 2 + 64 * 2 // 8)


def test_ids_and_names_are_two_ways_to_the_same_type() -> None:
    for name, kind in GGML_TYPES.items():
        assert type_by_name(name) is kind
        assert type_by_id(kind.id) is kind
    assert len({kind.id for kind in GGML_TYPES.values()}) == len(GGML_TYPES)


@pytest.mark.parametrize("kind", GGML_TYPES.values(), ids=str)
def test_size_is_that_of_whole_blocks(kind: GgmlType) -> None:
    assert kind.size_bytes(7 * kind.block_size) == 7 * kind.type_size
    assert kind.is_quantized == (kind.block_size > 1)
    if kind.is_quantized:
        with pytest.raises(GgufTypeError, match=f"not a whole number of {kind.name} blocks"):
            kind.size_bytes(kind.block_size + 1)


def test_unknown_and_removed_types_are_told_apart() -> None:
    with pytest.raises(GgufTypeError, match="unknown ggml type 99"):
        type_by_id(99)
    with pytest.raises(GgufTypeError, match=r"ggml type 31 \(Q4_0_4_4\) was removed.*convert"):
        type_by_id(31)
    with pytest.raises(GgufTypeError, match="unknown ggml type 'q4_k'; one of F32, F16"):
        type_by_name("q4_k")
