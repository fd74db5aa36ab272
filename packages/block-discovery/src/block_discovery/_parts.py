"""The model as a tree of parts: what a module and a list of dotted names have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from block_discovery._tree import TensorInfo


@dataclass(slots=True)
class Part:
    """A module, or what dotted names say about one; parts without tensors do not exist.

    Attributes:
        path: dotted path from the model; empty for the model itself.
        name: last component of the path.
        class_name: class of the module, empty where only names are known.
        callable: False for a module without a forward, such as nn.ModuleList: nothing ever calls it.
        is_embedding: a lookup table.
        tensors: the part's own tensors, those of its children not included.
        children: parts inside, in the order of the model.
        size_bytes: bytes of the part and everything inside it.
        holds_blocks: whether a block list lies inside, None until somebody asked.
    """

    path: str
    name: str
    class_name: str = ""
    callable: bool = True
    is_embedding: bool = False
    tensors: list[TensorInfo] = field(default_factory=list)
    children: list[Part] = field(default_factory=list)
    size_bytes: int = 0
    holds_blocks: bool | None = None

    def all_tensors(self) -> Iterator[TensorInfo]:
        """The part's own tensors, then its children's, as a state dict lists them."""
        # Not by recursion: each level of nested generators would hand on every tensor once more.
        waiting = [self]
        while waiting:
            part = waiting.pop()
            yield from part.tensors
            waiting.extend(reversed(part.children))


def finish(part: Part) -> Part:
    """Sum the sizes, drop parts without tensors, and fold in what torch stores below the layer that uses it.

    A parametrised weight lives at ``layer.parametrizations.weight.original0`` and is read by ``layer``;
    ``nn.MultiheadAttention`` reads ``out_proj.weight`` without ever calling ``out_proj``; an nn.ParameterList holds
    tensors for its owner. To a caller each is one layer: a hook on the inner module would never fire.
    """
    kept = []
    for child in part.children:
        finish(child)
        folded = (
            child.name == "parametrizations"
            or (child.name == "out_proj" and _is_attention_layer(part))
            or (not child.callable and not child.children)
        )
        if folded:
            part.tensors.extend(child.all_tensors())
        elif child.tensors or child.children:
            kept.append(child)
    part.children = kept
    part.size_bytes = sum(tensor.size_bytes for tensor in part.tensors) + sum(child.size_bytes for child in kept)
    return part


def _is_attention_layer(part: Part) -> bool:
    """Whether the part owns the input projection of nn.MultiheadAttention, packed or separate."""
    own = {tensor.name.rpartition(".")[2] for tensor in part.tensors}
    return "in_proj_weight" in own or "q_proj_weight" in own
