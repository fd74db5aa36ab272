"""What a model is made of, as data: tensors, units and the tree that lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from block_discovery._errors import InvalidTensorError, InvalidTreeError
from block_discovery._json import decode_json, encode_json

UnitKind = Literal["block", "leaf", "rest"]
"""What a unit is: a repeated part, a part that occurs once, or everything too small or too shared to be moved."""

Role = Literal["parameter", "buffer"]
Source = Literal["module", "names"]

_FORMAT = "block-discovery/tree"
_VERSION = 1

MAX_SIZE_BYTES = 2**63 - 1
"""Sizes above this overflow the signed 64-bit integers of every file format and allocator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a model, as its header or its module describes it.

    Attributes:
        name: dotted name in the model's state dict.
        size_bytes: bytes the stored tensor occupies; for a packed (quantised) tensor the packed bytes.
        shape: logical shape.
        dtype: element type as torch names it (``"bfloat16"``), or None where only the size is known.
        role: ``"buffer"`` for registered buffers; a file header cannot tell and says ``"parameter"``.

    Raises:
        InvalidTensorError: the size is negative or above 2**63 - 1 bytes.
    """

    name: str
    size_bytes: int
    shape: tuple[int, ...] = ()
    dtype: str | None = None
    role: Role = "parameter"

    def __post_init__(self) -> None:
        if not 0 <= self.size_bytes <= MAX_SIZE_BYTES:
            raise InvalidTensorError(
                f"has {self.size_bytes} bytes",
                subject=f"tensor {self.name!r}",
                remedy=f"a size is between 0 and {MAX_SIZE_BYTES} bytes; check where the size was read",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The smallest part of a model that is placed and streamed as one.

    Attributes:
        path: dotted module path; empty for the unit of kind ``"rest"``.
        class_name: class of the module; empty where only names are known.
        kind: ``"block"`` (a repeated part), ``"leaf"`` (a single large layer, or a few layers that occur once) or
            ``"rest"`` (always resident).
        group: path of the container that the unit is a repeated sibling in, or None.
        tensors: the tensors charged to this unit, in state dict order.
        is_embedding: True for lookup tables, which a planner may leave on a donor and look up there.
    """

    path: str
    class_name: str
    kind: UnitKind
    group: str | None
    tensors: tuple[TensorInfo, ...]
    is_embedding: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors of the unit."""
        return sum(tensor.size_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTree:
    """All units of one model, each tensor charged exactly once.

    Attributes:
        units: blocks and leaves in the order of the model, then at most one unit of kind ``"rest"``.
        tied: groups of names that share one storage; charged once, to the rest, and always resident.
        source: whether a module or only names and sizes were seen.
        prefix: what was cut off from the names in a checkpoint to get the names here.

    Raises:
        InvalidTreeError: a tensor or path twice, a unit inside another, a unit without tensors, a rest that is not last
            or has a path, a tied group of fewer than two names.
    """

    units: tuple[Unit, ...]
    tied: tuple[tuple[str, ...], ...] = ()
    source: Source = "module"
    prefix: str = ""

    def __post_init__(self) -> None:
        _check_units(self.units)
        _check_tensors(self.units)
        for group in self.tied:
            if len(set(group)) < 2:
                raise InvalidTreeError(
                    f"{group} ties nothing together", subject="tied", remedy="list every name of a shared storage"
                )

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole model."""
        return sum(unit.size_bytes for unit in self.units)

    @property
    def rest(self) -> Unit | None:
        """The unit that is always resident, or None where every tensor belongs to a block or leaf."""
        return self.units[-1] if self.units and self.units[-1].kind == "rest" else None

    def to_json(self, *, indent: int | None = None) -> str:
        """The tree as JSON text, to be stored, compared and read by `from_json`."""
        return encode_json(self, _FORMAT, version=_VERSION, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> BlockTree:
        """Inverse of `to_json`.

        Raises:
            InvalidJsonError: the text is not what `to_json` writes.
            InvalidTreeError: it is, but the tree contradicts itself.
            InvalidTensorError: it is, but a tensor has an impossible size.
        """
        return decode_json(cls, text, _FORMAT, version=_VERSION)


def _check_units(units: tuple[Unit, ...]) -> None:
    paths: set[str] = set()
    for position, unit in enumerate(units):
        subject = f"unit {unit.path!r}"
        if unit.kind not in get_args(UnitKind):
            kinds = ", ".join(get_args(UnitKind))
            raise InvalidTreeError(
                f"kind {unit.kind!r} does not exist", subject=subject, remedy=f"choose one of {kinds}"
            )
        if (unit.kind == "rest") != (unit.path == ""):
            raise InvalidTreeError(
                f"kind {unit.kind!r} does not go with this path",
                subject=subject,
                remedy="the rest, and only the rest, has an empty path",
            )
        if unit.kind == "rest" and position != len(units) - 1:
            raise InvalidTreeError("the rest is not the last unit", subject=subject, remedy="move it to the end")
        if not unit.tensors:
            raise InvalidTreeError("has no tensors", subject=subject, remedy="leave units without tensors out")
        if unit.path in paths:
            raise InvalidTreeError("is listed twice", subject=subject, remedy="give each path one unit")
        paths.add(unit.path)
    for path in paths:
        parent = path
        while parent := parent.rpartition(".")[0]:
            if parent in paths:
                raise InvalidTreeError(
                    f"lies inside the unit {parent!r}",
                    subject=f"unit {path!r}",
                    remedy="charge its tensors to one of the two",
                )


def _check_tensors(units: tuple[Unit, ...]) -> None:
    owners: dict[str, str] = {}
    for unit in units:
        for tensor in unit.tensors:
            if tensor.name in owners:
                raise InvalidTreeError(
                    f"is charged twice, to {owners[tensor.name]!r} and to {unit.path!r}",
                    subject=f"tensor {tensor.name!r}",
                    remedy="charge it to one unit; a tied tensor belongs to the rest",
                )
            owners[tensor.name] = unit.path
