"""Twice the tensors, twice the work: counted in calls of functions, which no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from discovery_testing import header_of, write_safetensors

from block_discovery import (
    BlockDiscoveryError,
    BlockTree,
    HeaderError,
    discover_file,
    discover_names,
    read_safetensors_header,
    read_safetensors_index,
)

SHAPES: dict[str, Callable[[int], str]] = {
    "blocks": lambda i: f"model.diffusion_model.blocks.{i // 10}.l{i % 10}.weight",
    "single layers": lambda i: f"w{i}.weight",
    "a list of layers": lambda i: f"layers.{i}.weight",
    "stages": lambda i: f"stages.{i // 40}.blocks.{i % 40 // 4}.l{i % 4}.weight",
    "stages of many kinds": lambda i: f"s.{i // 40}.b.{i % 40 // 4}.k{i // 40}_{i % 4}.w.weight",
    "blocks of one kind each": lambda i: f"blocks.{i // 10}.k{i}.w.weight",
    "numbered siblings": lambda i: f"block_{i // 10}.l{i % 10}.w.weight",
    "lists in lists": lambda i: ".".join(f"b.{(i >> level) & 1}" for level in range(12)) + f".l{i}.weight",
    "deep names": lambda i: f"{'x.' * 40}blocks.{i // 10}.{'y.' * 40}l{i % 10}.weight",
    "a chain with leaves": lambda i: f"{'c.' * (i % 80 + 1)}w{i}.x.weight",
}


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    calls = [0]

    def count(frame: object, event: str, argument: object) -> None:
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def work(action: Callable[[], Any]) -> int:
    with counted_calls() as calls:
        action()
    return calls[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_reading_discovery_and_json_are_linear(tmp_path: Path, shape: str) -> None:
    def all_of(count: int) -> list[int]:
        names = [SHAPES[shape](i) for i in range(count)]
        path = write_safetensors(tmp_path / f"{count}.safetensors", header_of(dict.fromkeys(names, 4)))
        tree = discover_file(path)
        text = tree.to_json()
        steps = (
            lambda: read_safetensors_header(path),
            lambda: discover_file(path),
            tree.to_json,
            lambda: BlockTree.from_json(text),
        )
        return [work(step) for step in steps]

    for small, large in zip(all_of(800), all_of(3200), strict=True):
        assert large <= 4.4 * small + 2000


def test_depth_costs_no_more_than_its_characters() -> None:
    """A chain of containers is walked once, not once for each level above."""

    def chain(depth: int) -> int:
        names = {f"{'c.' * (i % depth + 1)}w{i}.x.weight": ((4,), "U8") for i in range(1600)}
        return work(lambda: discover_names(names))

    assert chain(80) <= 1.5 * chain(20)


def test_a_header_of_too_many_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    raw = b"{" + b",".join(b'"%d":{"data_offsets":0}' % i for i in range(250_001)) + b"}"
    path = write_safetensors(tmp_path / "m.safetensors", raw)
    with pytest.raises(HeaderError, match="250001 tensors are listed, above the limit of 250000"):
        read_safetensors_header(path)
    path = write_safetensors(tmp_path / "m.safetensors", raw.replace(b'"data_', b'"d\\u0061ta_'))
    with pytest.raises(HeaderError, match="250001 tensors are listed"):
        read_safetensors_header(path)
    index = tmp_path / "m.safetensors.index.json"
    index.write_bytes(b'{"weight_map": {' + b",".join(b'"%d":"s"' % i for i in range(250_001)) + b"}}")
    with pytest.raises(HeaderError, match="250001 tensors are listed"):
        read_safetensors_index(index)


LONG = "x" * 10**6
NOTHING = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    "header",
    [
        {LONG: 3},
        {LONG: {"dtype": "U8", "shape": [4], "data_offsets": [0, 5]}},
        {"a": {"dtype": LONG, "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "U8", "shape": [LONG], "data_offsets": [0, 4]}},
        {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 10**400]}},
        {"a": {"dtype": "U8", "shape": [10**400], "data_offsets": [0, 4]}},
        {"z.w": NOTHING, "a." * 10**5 + "b": NOTHING},
        {LONG + "..b": NOTHING},
    ],
)
def test_messages_quote_at_most_a_line_of_a_file(tmp_path: Path, header: dict[str, Any]) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", header)
    with pytest.raises(BlockDiscoveryError) as caught:
        discover_file(path)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)
