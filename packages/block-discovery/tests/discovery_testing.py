"""Helpers of the block-discovery tests: small models of known structure, random ones, files, and known layouts."""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st
from torch import nn

from block_discovery import BlockTree

LAYOUTS = Path(__file__).parent / "data" / "layouts.json"
RANGES = re.compile(r"\{([^}]*)\}")


class Block(nn.Module):
    """A transformer-like block: two composite layers and a norm."""

    def __init__(self, width: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mlp(self.mix(self.norm(x)))
        return out


class Resnet(nn.Module):
    """A residual block that may change the width, as those of an autoencoder do."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in)
        self.conv1 = nn.Linear(width_in, width)
        self.norm2 = nn.LayerNorm(width)
        self.conv2 = nn.Linear(width, width)
        if width_in != width:
            self.shortcut = nn.Linear(width_in, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return out


class Chain(nn.Module):
    """Named children, called one after the other; a list is called member by member."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            for module in child if isinstance(child, nn.ModuleList) else [child]:
                x = module(x)
        return x


def blocks(count: int, width: int = 8) -> nn.ModuleList:
    """A list of equal blocks."""
    return nn.ModuleList(Block(width) for _ in range(count))


def paths(tree: BlockTree, kind: str | None = None) -> list[str]:
    """Paths of the units of one kind, or of all but the rest."""
    return [unit.path for unit in tree.units if (unit.kind == kind if kind else unit.path)]


def names_in(tree: BlockTree, path: str) -> list[str]:
    """Names of the tensors of the unit at a path."""
    (unit,) = (unit for unit in tree.units if unit.path == path)
    return [tensor.name for tensor in unit.tensors]


def sizes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What `discover_names` takes, for a state dict."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def entry(dtype: object, shape: object, offsets: object) -> dict[str, object]:
    """An entry of a safetensors header, good or bad."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_safetensors(path: Path, header: Mapping[str, Any] | bytes, data_bytes: int = 0) -> Path:
    """Write a header, or raw bytes in its place, and zeros after it; the zeros take no space on disk."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + data_bytes)
    return path


def header_of(sizes: Mapping[str, int]) -> dict[str, Any]:
    """A well-formed header of byte tensors with these sizes."""
    ends = [*itertools.accumulate(sizes.values(), initial=0)]
    spans = zip(sizes, itertools.pairwise(ends), strict=True)
    return {name: entry("U8", [stop - start], [start, stop]) for name, (start, stop) in spans}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names, shapes and labelled blocks of a real model."""

    family: str
    name: str
    sizes: dict[str, tuple[tuple[int, ...], str]]
    labels: frozenset[str]


def layouts() -> list[Layout]:
    """The known layouts, made once from the facts in tests-integration/data; numbered names are folded into ranges."""
    return [
        Layout(
            family=data["family"],
            name=data["name"],
            sizes={
                name: (tuple(shape), dtype)
                for folded, (shape, dtype) in data["tensors"].items()
                for name in unfold([folded])
            },
            labels=frozenset(unfold(data["labels"])),
        )
        for data in json.loads(LAYOUTS.read_text(encoding="utf-8"))
    ]


def unfold(folded: Iterable[str]) -> list[str]:
    """``a.{0-1}`` and so on, written out: ``a.0`` and ``a.1``."""
    names = []
    for name in folded:
        parts = RANGES.split(name)
        choices = [[text] if index % 2 == 0 else _numbers(text) for index, text in enumerate(parts)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _numbers(ranges: str) -> list[str]:
    numbers = []
    for text in ranges.split(","):
        first, _, last = text.partition("-")
        numbers += [str(number) for number in range(int(first), int(last or first) + 1)]
    return numbers


def share_found(tree: BlockTree, labels: Iterable[str], max_unit_fraction: float = 0.125) -> float:
    """Share of the bytes of the labelled blocks that the tree cuts as labelled, or finer where they are too large."""
    size = {tensor.name: tensor.size_bytes for unit in tree.units for tensor in unit.tensors}
    units = [({tensor.name for tensor in unit.tensors}, unit.kind) for unit in tree.units]
    found = total = 0
    for label in labels:
        block = {name for name in size if name.startswith(f"{label}.")}
        block_bytes = sum(size[name] for name in block)
        inside = [names for names, kind in units if names & block and kind != "rest"]
        as_labelled = inside == [block]
        too_large = block_bytes > max_unit_fraction * tree.size_bytes and all(names <= block for names in inside)
        total += block_bytes
        found += block_bytes if as_labelled or too_large else 0
    return found / total


_LEAF_MAKERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Linear(4, 4),
    lambda: nn.Linear(4, 4, bias=False),
    lambda: nn.Linear(64, 64),
    lambda: nn.LayerNorm(4),
    lambda: nn.BatchNorm1d(4),
    lambda: nn.Embedding(32, 4),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.ParameterList([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]),
    nn.Identity,
    lambda: Block(4, 8),
)

_LEAVES = st.sampled_from(_LEAF_MAKERS).map(lambda make: make())

_NAMES = st.sampled_from(
    ("a", "b", "block_1", "block_2", "experts", "layer1", "layer2", "0", "1", "weight", "out_proj")
)


def _containers(children: st.SearchStrategy[nn.Module]) -> st.SearchStrategy[nn.Module]:
    several = st.lists(children, min_size=1, max_size=4)
    return st.one_of(
        several.map(nn.ModuleList),
        several.map(lambda modules: nn.Sequential(*modules)),
        st.dictionaries(_NAMES, children, min_size=1, max_size=4).map(lambda named: Chain(**named)),
        st.dictionaries(_NAMES, children, min_size=1, max_size=3).map(_with_a_parameter),
    )


def _with_a_parameter(named: dict[str, nn.Module]) -> nn.Module:
    module = Chain(**named)
    module.register_parameter("scale", nn.Parameter(torch.zeros(3)))
    module.register_buffer("table", torch.zeros(2, 2), persistent=False)
    return module


modules = st.recursive(_LEAVES, _containers, max_leaves=12)
"""Random module trees: every kind of container, odd names, direct parameters, buffers."""

modules_with_tensors = modules.filter(
    lambda module: any(True for _ in itertools.chain(module.parameters(), module.buffers()))
)
