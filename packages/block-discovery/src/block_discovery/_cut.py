"""The cut: which parts of a model become units, decided by structure and size alone, never by an architecture's name.

A model repeats itself at one or more levels: stages hold blocks, blocks hold layers. Walking down from the top, the
cut is the first level of *blocks*:

1. **Block lists.** Children with numbers for names (``layers.0``, ``layers.1``), or numbered siblings that are alike
   (``block_1``, ``block_2``), are a block list when composites (parts with children) hold at least half of its bytes.
   Lists of experts are none: which expert runs is decided by the data, so no order of calls could be prefetched.
2. **Stages.** A member of a block list that itself consists mostly of one directly contained block list of alike parts
   is a stage, and its blocks are the units; unless it recurs (three identical members are blocks, whatever they
   hold) or is small already.
3. **Limits.** A member above `max_unit_fraction` of the model is opened when block lists hold at least half of it.
   A short mixed sequence of layers that stays below the limit is one unit.
4. **The rest.** Parts outside every block list that are at least `LEAF_FRACTION` of the model are units of their own;
   smaller ones, and tensors that belong directly to an opened part, stay resident.

A part without a forward (nn.ModuleList, a bare nn.Module) is never a unit: nothing calls it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from block_discovery._errors import InvalidFractionError
from block_discovery._parts import Part
from block_discovery._tree import TensorInfo, UnitKind

LEAF_FRACTION = 0.005
"""Parts outside block lists below this share of the model are not worth a transfer of their own."""

STAGE_FRACTION = 0.2
"""A stage below this share of the largest allowed unit is not worth opening."""

COVER = 0.5
"""Share of a part's bytes that decides what it mostly is."""

LIKENESS = 0.5
"""Shared tensor names, as a share of all, from which two parts are of one kind."""

RECURRENCES = 3
"""Identical members from which a member of a block list is a block, whatever is inside."""

_NUMBERED = re.compile(r"(.*[^\d_.])[_.]?\d+")
_EXPERTS = re.compile(r"(.*_)?experts?")


@dataclass(frozen=True, slots=True)
class CutPart:
    """A part that became a unit: its kind, and the container that it is a repeated sibling in."""

    part: Part
    kind: UnitKind
    group: str | None


@dataclass(slots=True)
class Cut:
    """Units in the order of the model, and the tensors of the rest."""

    max_unit_bytes: float
    min_stage_bytes: float
    min_leaf_bytes: float
    units: list[CutPart] = field(default_factory=list)
    rest: list[TensorInfo] = field(default_factory=list)


def cut(root: Part, *, model_bytes: int, max_unit_fraction: float) -> Cut:
    """Cut a model into units.

    Args:
        root: the model.
        model_bytes: bytes of the whole model, tensors outside `root` included.
        max_unit_fraction: share of the model above which a block is opened when it consists of smaller blocks.

    Raises:
        InvalidFractionError: the fraction is not above 0 and at most 1.
    """
    if not 0 < max_unit_fraction <= 1:
        raise InvalidFractionError(
            f"{max_unit_fraction} is not a share of a model",
            subject="max_unit_fraction",
            remedy="use a number above 0 and at most 1 (0.125 is the default)",
        )
    result = Cut(
        max_unit_bytes=max_unit_fraction * model_bytes,
        min_stage_bytes=max_unit_fraction * STAGE_FRACTION * model_bytes,
        min_leaf_bytes=LEAF_FRACTION * model_bytes,
    )
    _open(result, root)
    return result


def _open(cut: Cut, part: Part) -> None:
    """Cut a part that is not a unit itself: its own tensors stay, its children are looked at one by one."""
    cut.rest.extend(part.tensors)
    if _is_numbered_list(part):
        for child in part.children:
            _cut_member(cut, child, part.path, part.children)
        return
    member_of = {id(member): members for members in _numbered_siblings(part) for member in members}
    for child in part.children:
        if id(child) in member_of:
            _cut_member(cut, child, part.path, member_of[id(child)])
        else:
            _cut_single(cut, child)


def _cut_single(cut: Cut, part: Part) -> None:
    """Cut a part that is no member of a block list."""
    part = _unwrapped(part)
    if _holds_blocks(part):
        may_be_one = _is_block_list(part) and part.callable and part.size_bytes <= cut.max_unit_bytes
        if may_be_one and not _is_repetition(_composites(part.children)):
            _emit(cut, part, "block", None)
        else:
            _open(cut, part)
    elif part.size_bytes < cut.min_leaf_bytes:
        cut.rest.extend(part.all_tensors())
    elif part.children and (part.size_bytes > cut.max_unit_bytes or not part.callable or _repeats_a_layer(part)):
        _open(cut, part)
    else:
        _emit(cut, part, "leaf", None)


def _cut_member(cut: Cut, part: Part, group: str, members: list[Part]) -> None:
    """Cut a member of a block list."""
    inner = _unwrapped(part)
    unit = part if part.callable else inner
    if not part.size_bytes:
        cut.rest.extend(part.all_tensors())
    elif not inner.children:
        _emit(cut, unit, "leaf", group)
    elif (
        not unit.callable
        or (part.size_bytes > cut.max_unit_bytes and _block_bytes(inner) >= COVER * part.size_bytes)
        or (part.size_bytes > cut.min_stage_bytes and _is_stage(inner) and not _recurs(part, members))
    ):
        _open(cut, inner)
    else:
        _emit(cut, unit, "block", group)


def _emit(cut: Cut, part: Part, kind: UnitKind, group: str | None) -> None:
    cut.units.append(CutPart(part, kind, group))


def _unwrapped(part: Part) -> Part:
    """The part itself, or what it merely wraps: no direct tensors and a single child that is no list of blocks."""
    while not part.tensors and len(part.children) == 1 and not _is_block_list(part):
        part = part.children[0]
    return part


def _composites(parts: Iterable[Part]) -> list[Part]:
    return [part for part in parts if _unwrapped(part).children]


def _is_numbered_list(part: Part) -> bool:
    return bool(part.children) and not part.tensors and all(child.name.isdecimal() for child in part.children)


def _is_block_list(part: Part) -> bool:
    if not _is_numbered_list(part) or _EXPERTS.fullmatch(part.name):
        return False
    return sum(child.size_bytes for child in _composites(part.children)) >= COVER * part.size_bytes > 0


def _numbered_siblings(part: Part) -> list[list[Part]]:
    """Groups of children such as ``block_1`` and ``block_2`` that are composite and alike."""
    groups: dict[str, list[Part]] = {}
    for child in part.children:
        if match := _NUMBERED.fullmatch(child.name):
            groups.setdefault(match[1], []).append(child)
    return [
        members
        for members in groups.values()
        if len(members) > 1 and len(_composites(members)) == len(members) and _all_alike(members)
    ]


def _holds_blocks(part: Part) -> bool:
    """Whether there is a block list in the part, at any depth."""
    if part.holds_blocks is None:
        # Asked again at every level on the way down, so the answer is kept.
        part.holds_blocks = not _EXPERTS.fullmatch(part.name) and (
            _is_block_list(part) or bool(_numbered_siblings(part)) or any(map(_holds_blocks, part.children))
        )
    return part.holds_blocks


def _block_bytes(part: Part) -> int:
    """Bytes in the outermost block lists of the part."""
    if _is_block_list(part):
        return part.size_bytes
    return 0 if _EXPERTS.fullmatch(part.name) else sum(map(_block_bytes, part.children))


def _is_stage(part: Part) -> bool:
    """Whether the part mostly consists of a directly contained block list of alike parts, or is one."""
    if _is_numbered_list(part):
        composites = _composites(part.children)
        counts = _alike_counts(composites)
        repeated = [child for child, count in zip(composites, counts, strict=True) if count > 1]
    else:
        repeated = [
            child for child in part.children if _is_block_list(child) and _all_alike(_composites(child.children))
        ]
    return sum(child.size_bytes for child in repeated) >= COVER * part.size_bytes


def _is_repetition(parts: list[Part]) -> bool:
    """Whether parts are of one kind, or one kind among them recurs."""
    return _all_alike(parts) or max(_alike_counts(parts)) >= RECURRENCES


def _repeats_a_layer(part: Part) -> bool:
    """Whether the part is a numbered list that mostly consists of one layer, again and again."""
    if not _is_numbered_list(part):
        return False
    layers = [_tensor_shapes(child) for child in part.children]
    counts = Counter(layers)
    recurring = zip(part.children, layers, strict=True)
    return (
        sum(child.size_bytes for child, layer in recurring if counts[layer] >= RECURRENCES) >= COVER * part.size_bytes
    )


def _recurs(part: Part, members: list[Part]) -> bool:
    wanted = _tensor_shapes(part)
    same_size = (member for member in members if member.size_bytes == part.size_bytes)
    return sum(_tensor_shapes(member) == wanted for member in same_size) >= RECURRENCES


def _tensor_shapes(part: Part) -> frozenset[tuple[str, tuple[int, ...]]]:
    """All tensors by name within the part, with their shapes: parts for which it is equal are built alike."""
    return frozenset((tensor.name[len(part.path) :], tensor.shape) for tensor in part.all_tensors())


def _tensor_names(part: Part) -> frozenset[str]:
    """All tensors by name within the part."""
    return frozenset(tensor.name[len(part.path) :] for tensor in part.all_tensors())


def _all_alike(parts: list[Part]) -> bool:
    names = {_tensor_names(part) for part in parts}
    first = _tensor_names(parts[0])
    return all(_are_alike(first, others) for others in names)


def _alike_counts(parts: list[Part]) -> list[int]:
    """For each part the number of parts, itself included, that are of its kind."""
    names = [_tensor_names(part) for part in parts]
    counts = Counter(names)
    alike = {one: sum(counts[other] for other in counts if _are_alike(one, other)) for one in counts}
    return [alike[one] for one in names]


def _are_alike(names: frozenset[str], others: frozenset[str]) -> bool:
    """Whether parts with these tensors are of one kind: most names inside are the same; shapes may differ."""
    return len(names & others) >= LIKENESS * len(names | others)
