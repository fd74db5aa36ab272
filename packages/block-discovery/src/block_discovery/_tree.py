"""What a model is made of, as data: tensors, units and the tree that lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["block", "leaf", "rest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a model, as its header or its module describes it.

    Attributes:
        name: dotted name in the model's state dict.
        size_bytes: bytes the stored tensor occupies; for a packed (quantised) tensor the packed bytes.
        shape: logical shape.
        dtype: element type as torch names it (``"bfloat16"``), or None where only the size is known.
        role: ``"buffer"`` for registered buffers; a file header cannot tell and says ``"parameter"``.
    """

    name: str
    size_bytes: int
    shape: tuple[int, ...] = ()
    dtype: str | None = None
    role: Literal["parameter", "buffer"] = "parameter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The smallest part of a model that is placed and streamed as one.

    Attributes:
        path: dotted module path; empty for the unit of kind ``"rest"``.
        class_name: class of the module; empty where only names are known.
        kind: ``"block"`` (repeated composite), ``"leaf"`` (a single large layer) or ``"rest"`` (always resident).
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
    """

    units: tuple[Unit, ...]
    tied: tuple[tuple[str, ...], ...] = ()
    source: Literal["module", "names"] = "module"

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole model."""
        return sum(unit.size_bytes for unit in self.units)
