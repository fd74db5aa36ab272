"""Every tensor of a model once, with all the places that refer to it, and what a plan says about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from device_placement._errors import PlanMismatchError
from device_placement._plan import PlacementPlan, TensorHome, UnitPlacement
from device_placement.tensors._flat_buffers import is_packed, over, plain_parts, stored_bytes

Owner = dict[str, Tensor | None]
"""The `_parameters` or `_buffers` of a module."""


@dataclass(slots=True)
class Place:
    """An entry of a module that refers to a tensor."""

    owner: Owner
    key: str
    name: str


@dataclass(slots=True)
class Held:
    """One tensor of a model: its memory, and every entry that refers to it (several when it is tied).

    Attributes:
        places: entries, in the order of the model; the objects they hold may differ, their memory does not.
        optional: a buffer that is not saved, which a plan made from a file cannot know.
    """

    places: list[Place] = field(default_factory=list)
    optional: bool = False

    @property
    def tensor(self) -> Tensor:
        """The object in the first entry."""
        tensor = self.places[0].owner[self.places[0].key]
        assert tensor is not None
        return tensor

    @property
    def name(self) -> str:
        """Name of the first entry."""
        return self.places[0].name

    @property
    def parts(self) -> list[Tensor]:
        """The plain tensors in memory."""
        return plain_parts(self.tensor)

    def move_to(self, parts: list[Tensor]) -> None:
        """Let every entry refer to the memory of `parts`; objects stay the same where torch allows it.

        Where it does not, entries get new objects, as `nn.Module.to` does; those that shared one share the new one.
        """
        renewed: dict[int, Tensor] = {}
        for place in self.places:
            old = place.owner[place.key]
            assert old is not None
            if id(old) not in renewed:
                renewed[id(old)] = _moved(old, parts)
            place.owner[place.key] = renewed[id(old)]


def _moved(tensor: Tensor, parts: list[Tensor]) -> Tensor:
    moved = over(tensor, parts)
    try:
        # The object stays, and writes to it count as writes to the buffer that it becomes a view of.
        torch.utils.swap_tensors(tensor, moved)  # type: ignore[no-untyped-call]
    except RuntimeError:
        # Somebody holds a weak reference to it (a compiled model does), or its memory from C++.
        if is_packed(tensor) or tensor.is_inference():
            return moved
        if not torch._has_compatible_shallow_copy_type(tensor, parts[0]):
            return moved
        tensor.data = parts[0]
    return tensor


@dataclass(slots=True)
class Inventory:
    """All tensors of a model.

    Attributes:
        held: each tensor once, in the order of the model.
        by_name: the same by every name they have.
    """

    held: list[Held]
    by_name: dict[str, Held]


def take_inventory(model: nn.Module) -> Inventory:
    """List the tensors of a model, tied ones once.

    Raises:
        PlanMismatchError: the model has no tensors, some without values (on the meta device), some that share a part
            of their memory, or some of a kind that cannot be exchanged.
    """
    scripted = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise PlanMismatchError(
            "modules are compiled by TorchScript, which keeps their tensors to itself", scripted, "place the original"
        )
    by_memory: dict[object, Held] = {}
    by_name: dict[str, Held] = {}
    entries: set[tuple[int, str]] = set()
    for owner, key, name, optional in _entries(model):
        tensor = owner[key]
        if tensor is None:
            continue
        held = by_memory.setdefault(_memory_of(tensor), Held(optional=optional))
        held.optional = held.optional and optional
        by_name.setdefault(name, held)
        if (id(owner), key) not in entries:
            entries.add((id(owner), key))
            held.places.append(Place(owner, key, name))
    inventory = Inventory(list(by_memory.values()), by_name)
    _check(inventory)
    return inventory


def _entries(model: nn.Module) -> Iterator[tuple[Owner, str, str, bool]]:
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for key in module._parameters:
            yield module._parameters, key, prefix + key, False
        for key in module._buffers:
            yield module._buffers, key, prefix + key, key in module._non_persistent_buffers_set


def _memory_of(tensor: Tensor) -> object:
    """Equal for tensors that are the same view of the same memory."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided or not stored_bytes(tensor):
        return id(tensor)
    return tuple(
        (str(part.device), part.data_ptr(), part.shape, part.stride(), part.dtype) for part in plain_parts(tensor)
    )


def _check(inventory: Inventory) -> None:
    if not inventory.held:
        raise PlanMismatchError("the model has no parameters or buffers", [], "place a model that has weights")
    unloaded = [held.name for held in inventory.held if nn.parameter.is_lazy(held.tensor) or held.tensor.is_meta]
    if unloaded:
        raise PlanMismatchError("tensors of the model have no values yet", unloaded, "load the weights, then place")
    special = [
        held.name
        for held in inventory.held
        if any(part.layout is not torch.strided or part.is_quantized for part in held.parts)
    ]
    if special:
        raise PlanMismatchError(
            "tensors are sparse or of a quantised dtype of torch, and cannot be copied byte by byte",
            special,
            "convert them to dense tensors",
        )
    ranges: dict[str, list[tuple[int, int, str]]] = {}
    for held in inventory.held:
        for part in held.parts:
            if part.numel():
                extent = sum((size - 1) * step for size, step in zip(part.shape, part.stride(), strict=True)) + 1
                start = part.data_ptr()
                end = start + extent * part.element_size()
                ranges.setdefault(str(part.device), []).append((start, end, held.name))
    for spans in ranges.values():
        spans.sort()
        for (_, end, name), (start, _, other) in itertools.pairwise(spans):
            if start < end:
                raise PlanMismatchError(
                    "tensors share a part of their memory",
                    [name, other],
                    "tie whole tensors, or give each separate memory (clone one of them)",
                )


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor and the home that a plan gives it."""

    home: TensorHome
    held: Held


@dataclass(frozen=True, slots=True)
class Assignment:
    """A plan applied to a model, still without moving anything.

    Attributes:
        units: the tensors of each unit of the plan.
        unplanned: buffers that are not saved and that the plan does not know; they go to the compute device.
    """

    units: tuple[tuple[UnitPlacement, tuple[PlannedTensor, ...]], ...]
    unplanned: tuple[Held, ...]


def assign(model: nn.Module, inventory: Inventory, plan: PlacementPlan) -> Assignment:
    """Find the tensor of every home of a plan.

    Raises:
        PlanMismatchError: the plan names a tensor or a module that the model does not have, a size differs, a tensor
            of the model has no home or two, or a streamed tensor is used outside its unit.
    """
    homes = {home.name: home for unit in plan.units for home in unit.homes}
    unknown = [name for name in homes if name not in inventory.by_name]
    if unknown:
        raise PlanMismatchError(
            "the plan has a home for tensors that the model does not have", unknown, "make the plan from this model"
        )
    resized = [name for name, home in homes.items() if stored_bytes(inventory.by_name[name].tensor) != home.size_bytes]
    if resized:
        first = resized[0]
        raise PlanMismatchError(
            f"tensors have another size than planned ({first!r} has "
            f"{stored_bytes(inventory.by_name[first].tensor)} bytes, planned were {homes[first].size_bytes})",
            resized,
            "make the plan from the loaded model (same dtype, same quantisation)",
        )
    planned: dict[int, str] = {}
    for name in homes:
        other = planned.setdefault(id(inventory.by_name[name]), name)
        if other != name:
            raise PlanMismatchError(
                "tied tensors have two homes", [other, name], "charge a tied tensor once, to the rest"
            )
    without = [held for held in inventory.held if id(held) not in planned]
    missing = [held.name for held in without if not held.optional]
    if missing:
        raise PlanMismatchError("the plan has no home for tensors of the model", missing, "make it from this model")
    units = tuple(
        (unit, tuple(PlannedTensor(home, inventory.by_name[home.name]) for home in unit.homes)) for unit in plan.units
    )
    _check_units(model, inventory, units, plan.compute)
    return Assignment(units, tuple(without))


def _check_units(
    model: nn.Module,
    inventory: Inventory,
    units: tuple[tuple[UnitPlacement, tuple[PlannedTensor, ...]], ...],
    compute: str,
) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, held in inventory.by_name.items():
        names.setdefault(id(held), []).append(name)
    for unit, tensors in units:
        streamed = [tensor for tensor in tensors if tensor.home.device != compute]
        if not streamed:
            continue
        if unit.path not in modules:
            raise PlanMismatchError("the model has no module", [unit.path], "make the plan from this model")
        prefix = f"{unit.path}." if unit.path else ""
        others = [name for tensor in streamed for name in names[id(tensor.held)] if not name.startswith(prefix)]
        shared = [name for name in others if not _leads_through(model, name, modules[unit.path])]
        if shared:
            raise PlanMismatchError(
                f"tensors streamed for {unit.path!r} are also used outside it",
                shared,
                f"give tied tensors a home on {compute!r}, where everybody finds them",
            )


def _leads_through(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether `module` is on the way to the tensor: calling it is the only way to use the tensor by this name."""
    step = model
    for key in name.split(".")[:-1]:
        step = step.get_submodule(key)
        if step is module:
            return True
    return step is module
