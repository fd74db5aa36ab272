"""Models and machines for the tests of this package: trees made by hand, of real proportions or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from block_discovery import BlockTree, TensorInfo, Unit, UnitKind
from device_placement import Device, Hardware, Link

MIB = 1 << 20
GIB = 1 << 30

# Bytes of the large tensors of one block in fp8, from the published shapes (hidden 3072; 5120 for Wan).
FLUX_DOUBLE = (56_623_104, 56_623_104, *(28_311_552, 9_437_184, 37_748_736, 37_748_736) * 2)
FLUX_SINGLE = (66_060_288, 47_185_920, 28_311_552)
WAN_BLOCK = (*(26_214_400,) * 8, 70_778_880, 70_778_880)
QWEN_BLOCK = (56_623_104, 56_623_104, *(9_437_184,) * 8, *(37_748_736,) * 4)


def unit(path: str, sizes: Sequence[int], *, kind: UnitKind = "block", is_embedding: bool = False) -> Unit:
    """A unit with tensors of the given sizes."""
    tensors = tuple(TensorInfo(name=f"{path}.{index}", size_bytes=size) for index, size in enumerate(sizes))
    return Unit(path=path, class_name="Block", kind=kind, group="blocks", tensors=tensors, is_embedding=is_embedding)


def rest(sizes: Sequence[int]) -> Unit:
    """The unit that is always resident."""
    tensors = tuple(TensorInfo(name=f"rest.{index}", size_bytes=size) for index, size in enumerate(sizes))
    return Unit(path="", class_name="", kind="rest", group=None, tensors=tensors)


def tree_of(blocks: Sequence[Sequence[int]], *, rest_sizes: Sequence[int] = ()) -> BlockTree:
    """Blocks with tensors of the given sizes, and a rest."""
    units = [unit(f"blocks.{index}", sizes) for index, sizes in enumerate(blocks)]
    return BlockTree(units=(*units, rest(rest_sizes)) if rest_sizes else tuple(units))


def flux_tree() -> BlockTree:
    """19 two-stream and 38 single blocks: 11.8 GB."""
    return tree_of([FLUX_DOUBLE] * 19 + [FLUX_SINGLE] * 38)


def wan_tree() -> BlockTree:
    """40 equal blocks: 14 GB."""
    return tree_of([WAN_BLOCK] * 40)


def qwen_tree() -> BlockTree:
    """60 equal blocks: 20.4 GB."""
    return tree_of([QWEN_BLOCK] * 60)


def flux_seconds(total: float, *, image_tokens: int = 4096, text_tokens: int = 512) -> dict[str, float]:
    """Time of each block of `flux_tree` by its arithmetic: a double block sends half its weights past the text only."""
    tokens, hidden = image_tokens + text_tokens, 3072
    attention = 4 * tokens * tokens * hidden
    double = 2 * sum(FLUX_DOUBLE) * 0.5 * 0.83 * tokens + attention
    single = 2 * sum(FLUX_SINGLE) * 0.80 * tokens + attention
    scale = total / (19 * double + 38 * single)
    return {f"blocks.{index}": (double if index < 19 else single) * scale for index in range(57)}


def machine(
    compute_bytes: int,
    *,
    gb_per_second: float = 25.0,
    donors: Sequence[str] = ("cpu",),
    donor_bytes: int = 128 * GIB,
    ingress: Sequence[str] | None = None,
    latency_seconds: float = 20e-6,
) -> Hardware:
    """A compute device ``cuda:0`` with all its memory free, and donors with links of one speed."""
    names = tuple(donors)
    return Hardware(
        compute="cuda:0",
        devices=(
            Device(name="cuda:0", total_bytes=compute_bytes, free_bytes=compute_bytes),
            *(Device(name=name, total_bytes=donor_bytes, free_bytes=donor_bytes) for name in names),
        ),
        links=tuple(
            Link(
                source=name,
                target="cuda:0",
                gb_per_second=gb_per_second,
                latency_seconds=latency_seconds,
                ingress=ingress[index] if ingress else "host",
            )
            for index, name in enumerate(names)
        ),
    )


@st.composite
def trees(draw: st.DrawFn) -> BlockTree:
    """Trees of 1 to 12 units that differ in everything a planner may stumble over."""
    sizes = st.lists(st.integers(0, 64 * 1024), min_size=1, max_size=6)
    shapes = draw(st.lists(sizes, min_size=1, max_size=3))
    units = []
    for index in range(draw(st.integers(1, 12))):
        is_embedding = draw(st.booleans()) and draw(st.booleans())
        units.append(
            unit(
                f"blocks.{index}",
                draw(st.sampled_from(shapes)),
                kind="leaf" if is_embedding else "block",
                is_embedding=is_embedding,
            )
        )
    rest_sizes = draw(st.lists(st.integers(0, 4096), max_size=3))
    return BlockTree(units=(*units, rest(rest_sizes)) if rest_sizes else tuple(units))


def movable_bytes(tree: BlockTree) -> int:
    """Bytes of a tree outside its rest."""
    return sum(part.size_bytes for part in tree.units if part.kind != "rest")
