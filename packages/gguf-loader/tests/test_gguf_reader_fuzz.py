from __future__ import annotations

import random
from math import prod
from pathlib import Path

import gguf_bytes as raw
import pytest
from gguf_mutations import mutate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_loader import GGML_TYPES, GgufArray, GgufError, GgufFile, open_gguf, read_header


def use_everything(file: GgufFile) -> None:
    """Read all that a header promises: whatever was accepted must be readable to the last byte."""
    header = file.header
    header.metadata.host_view()
    for value in header.metadata.values():
        if isinstance(value, GgufArray):
            assert len(value.tolist()) == len(value)
    for name, tensor in header.tensors.items():
        assert tensor.size_bytes == tensor.ggml_type.size_bytes(prod(tensor.shape))
        stored = file.tensor_bytes(name)
        assert stored.numel() == tensor.size_bytes
        int(stored[-1])


@pytest.mark.parametrize("mutations", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_give_an_error_of_ours_or_a_file_that_can_be_used(tmp_path: Path, mutations: int) -> None:
    rng = random.Random(20_261_122 + mutations)
    sources = [raw.rich().bytes(), short_names().bytes()]
    path = tmp_path / "mutated.gguf"
    accepted = refused = 0
    for index in range(mutations):
        path.write_bytes(mutate(sources[index % 2], rng))
        try:
            use_everything(open_gguf(path))
            accepted += 1
        except GgufError:
            refused += 1
    # Damage to a name or a weight is no malformation; both outcomes must occur, or nothing was tried.
    assert accepted > mutations // 20
    assert refused > mutations // 4


def short_names() -> raw.File:
    """Nearly all structure: any damage hits a length, a count, a type or an offset."""
    pairs = [raw.pair("a", raw.ARRAY, raw.array(raw.STRING, ["", "b", "cc"])), raw.pair("d", raw.U64, 1)]
    return raw.File(pairs=pairs, tensors=[raw.Tensor(name) for name in "efgh"])


@given(junk=st.binary(max_size=200), version=st.integers(0, 5))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_were_never_a_gguf_file_are_refused_or_hold_what_they_say(
    tmp_path: Path, junk: bytes, version: int
) -> None:
    path = tmp_path / "junk.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + junk)
    try:
        header = read_header(path)
    except GgufError:
        return
    assert len(header.tensors) * 24 + len(header.metadata) * 13 <= len(junk)


NUMBERS: dict[int, st.SearchStrategy[object]] = {
    raw.U8: st.integers(0, 2**8 - 1),
    raw.I8: st.integers(-(2**7), 2**7 - 1),
    raw.U16: st.integers(0, 2**16 - 1),
    raw.I16: st.integers(-(2**15), 2**15 - 1),
    raw.U32: st.integers(0, 2**32 - 1),
    raw.I32: st.integers(-(2**31), 2**31 - 1),
    raw.FLOAT32: st.floats(width=32, allow_nan=False),
    raw.BOOL: st.booleans(),
    raw.STRING: st.text(max_size=20),
    raw.U64: st.integers(0, 2**64 - 1),
    raw.I64: st.integers(-(2**63), 2**63 - 1),
    raw.FLOAT64: st.floats(allow_nan=False),
}
SCALAR = st.sampled_from(sorted(NUMBERS)).flatmap(lambda kind: st.tuples(st.just(kind), NUMBERS[kind]))
ARRAY = st.sampled_from(sorted(NUMBERS)).flatmap(lambda kind: st.tuples(st.just(kind), st.lists(NUMBERS[kind])))
KEY = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda key: not key.startswith(("general", "split")))
TENSOR = st.tuples(st.sampled_from(sorted(GGML_TYPES)), st.lists(st.integers(1, 3), max_size=6))


@given(
    scalars=st.dictionaries(KEY, SCALAR, max_size=5),
    arrays=st.dictionaries(KEY, ARRAY, max_size=5),
    tensors=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=60), TENSOR, max_size=5),
    version=st.sampled_from((2, 3)),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_is_read(
    tmp_path: Path,
    scalars: dict[str, tuple[int, object]],
    arrays: dict[str, tuple[int, list[object]]],
    tensors: dict[str, tuple[str, list[int]]],
    version: int,
) -> None:
    arrays = {key: value for key, value in arrays.items() if key not in scalars}
    pairs = [raw.pair(key, kind, content) for key, (kind, content) in scalars.items()]
    pairs += [raw.pair(key, raw.ARRAY, raw.array(kind, contents)) for key, (kind, contents) in arrays.items()]
    records = []
    for index, (name, (type_name, rest)) in enumerate(tensors.items()):
        kind = GGML_TYPES[type_name]
        dims = (kind.block_size, *rest)
        records.append(raw.Tensor(name, dims, kind.id, bytes([index]) * kind.size_bytes(prod(dims))))
    file = open_gguf(raw.File(version=version, pairs=pairs, tensors=records).write(tmp_path / "any.gguf"))
    metadata = file.header.metadata
    assert {key: metadata[key] for key in scalars} == {key: content for key, (_, content) in scalars.items()}
    assert {key: metadata.value_type(key) for key in scalars} == {key: kind for key, (kind, _) in scalars.items()}
    assert {key: metadata.array(key).tolist() for key in arrays} == {key: items for key, (_, items) in arrays.items()}
    assert list(metadata) == [*scalars, *arrays]
    assert list(file.header.tensors) == list(tensors)
    for record in records:
        assert file.header.tensors[str(record.name)].shape == tuple(reversed(record.dims))
        assert file.tensor_bytes(str(record.name)).numpy().tobytes() == record.data
