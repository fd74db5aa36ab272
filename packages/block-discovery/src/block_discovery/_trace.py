"""The real order of calls: which units a forward runs, how often, and which it reaches only through their parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from block_discovery._errors import UnknownUnitError
from block_discovery._tree import BlockTree, TensorInfo, Unit


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a unit, or of a part of a unit while the unit itself was not running."""

    unit: str
    path: str
    class_name: str
    is_embedding: bool
    is_composite: bool


@dataclass(slots=True)
class CallTrace:
    """What the traced forwards called, so far.

    A hook on a module fires only if somebody calls that module. Some models loop over the children of a container
    themselves (then the container is bypassed), and some call a layer of a block from outside the block.

    Attributes:
        given: the tree that was traced.
    """

    given: BlockTree
    _seen: list[_Call] = field(default_factory=list)

    @property
    def tree(self) -> BlockTree:
        """The given tree, cut so that a hook on each unit covers every use of its tensors that was seen.

        A bypassed unit becomes the parts of it that were called, with the unit as their group; what it holds besides
        goes to the rest. A part that is called both within its unit and from outside goes to the rest as well. Units
        that were not called are unchanged.
        """
        outside = _outside_parts(self._seen)
        called = {call.unit for call in self._seen if call.path == call.unit}
        units: list[Unit] = []
        rest: list[TensorInfo] = []
        for unit in self.given.units:
            parts = outside.get(unit.path, [])
            if unit.kind == "rest":
                rest.extend(unit.tensors)
            elif not parts:
                units.append(unit)
            else:
                split, left = _split(unit, parts, keep=unit.path in called)
                units.extend(split)
                rest.extend(left)
        if rest:
            units.append(Unit(path="", class_name="", kind="rest", group=None, tensors=tuple(rest)))
        return replace(self.given, units=tuple(units))

    @property
    def calls(self) -> tuple[str, ...]:
        """Paths of the units of `tree` in the order of their calls, repeated calls included."""
        units = {unit.path for unit in self.tree.units}
        return tuple(call.path for call in self._seen if call.path in units)

    @property
    def counts(self) -> dict[str, int]:
        """Number of calls of every unit of `tree`, 0 for those that were not called."""
        counts = Counter(self.calls)
        return {unit.path: counts[unit.path] for unit in self.tree.units if unit.kind != "rest"}


@contextmanager
def trace_calls(model: nn.Module, tree: BlockTree) -> Iterator[CallTrace]:
    """Record which units the forwards inside the `with` block call, in which order and how often.

    Works on any device, the meta device included, and leaves no hook behind. Forwards in several threads at once are
    not distinguished. Code that reads a weight without calling its module is not seen.

    Args:
        model: the module that the tree was made of, or that has units at the same paths.
        tree: the units to look for.

    Yields:
        The trace, which grows with every forward.

    Raises:
        UnknownUnitError: the model has no module at the path of a unit.

    Examples:
        >>> import torch
        >>> from block_discovery import discover
        >>> block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> model = nn.Sequential(block, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        >>> with trace_calls(model, discover(model)) as trace:
        ...     _ = model(torch.zeros(1, 4))
        >>> trace.calls
        ('0', '1')
    """
    trace = CallTrace(tree)
    running: Counter[str] = Counter()
    handles = []
    try:
        for unit in tree.units:
            if unit.kind == "rest":
                continue
            for name, module in _module_at(model, unit.path).named_modules():
                call = _Call(
                    unit=unit.path,
                    path=f"{unit.path}.{name}" if name else unit.path,
                    class_name=type(module).__name__,
                    is_embedding=isinstance(module, (nn.Embedding, nn.EmbeddingBag)),
                    is_composite=any(True for _ in module.children()),
                )
                handles.append(module.register_forward_pre_hook(partial(_enter, trace, running, call), prepend=True))
                handles.append(module.register_forward_hook(partial(_leave, running, call), always_call=True))
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _enter(trace: CallTrace, running: Counter[str], call: _Call, module: nn.Module, inputs: Any) -> None:
    if call.path == call.unit or not running[call.unit]:
        trace._seen.append(call)
    running[call.unit] += 1


def _leave(running: Counter[str], call: _Call, module: nn.Module, inputs: Any, output: Any) -> None:
    running[call.unit] -= 1


def _module_at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnknownUnitError(
            f"the model {type(model).__name__} has no such module",
            subject=f"unit {path!r}",
            remedy="trace the model that the tree was made of; a tree from a checkpoint may need another prefix",
        ) from error


def _outside_parts(seen: list[_Call]) -> dict[str, list[_Call]]:
    """For each unit the parts that were called while the unit was not running, each once."""
    parts: dict[str, dict[str, _Call]] = {}
    for call in seen:
        if call.path != call.unit:
            parts.setdefault(call.unit, {})[call.path] = call
    return {unit: list(calls.values()) for unit, calls in parts.items()}


def _split(unit: Unit, parts: list[_Call], *, keep: bool) -> tuple[list[Unit], list[TensorInfo]]:
    """Divide a unit into those that can be hooked and tensors that must stay resident.

    Args:
        unit: the unit.
        parts: parts of it that were called from outside.
        keep: the unit was called as well, so it stays a unit and the parts stay resident.
    """
    owners = {tensor.name: _owners(tensor.name, {part.path for part in parts}) for tensor in unit.tensors}
    if keep:
        inside = tuple(tensor for tensor in unit.tensors if not owners[tensor.name])
        split = [replace(unit, tensors=inside)] if inside else []
    else:
        by_path = {part.path: part for part in parts}
        mine: dict[str, list[TensorInfo]] = {}
        for tensor in unit.tensors:
            # A part inside another called part has two owners: a hook on either would miss calls of the other.
            if len(owners[tensor.name]) == 1:
                mine.setdefault(owners[tensor.name][0], []).append(tensor)
        split = [_unit_of(by_path[path], unit.path, tuple(tensors)) for path, tensors in mine.items()]
    kept = {tensor.name for part in split for tensor in part.tensors}
    return split, [tensor for tensor in unit.tensors if tensor.name not in kept]


def _unit_of(part: _Call, group: str, tensors: tuple[TensorInfo, ...]) -> Unit:
    return Unit(
        path=part.path,
        class_name=part.class_name,
        kind="block" if part.is_composite else "leaf",
        group=group,
        tensors=tensors,
        is_embedding=part.is_embedding,
    )


def _owners(name: str, paths: set[str]) -> list[str]:
    """Those of the paths that the dotted name lies in."""
    found = []
    while name := name.rpartition(".")[0]:
        if name in paths:
            found.append(name)
    return found
