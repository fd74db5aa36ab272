"""Small models, plans made by hand for them, and the machines that the engine is tested on."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from device_placement import (
    AcceleratorBackend,
    Backend,
    EmulatedBackend,
    Link,
    PlacementPlan,
    SameDeviceBackend,
    TensorHome,
    UnitPlacement,
)
from device_placement.copying._clock import VirtualClock
from device_placement.tensors._flat_buffers import stored_bytes
from device_placement.tensors._inventory import take_inventory

WIDTH = 32


class Block(nn.Module):
    """A residual layer of six tensors."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + y


class Stack(nn.Module):
    """Blocks one after the other, then a head; `order` says which, and may be changed between passes."""

    def __init__(self, blocks: Sequence[nn.Module] | int = 5, width: int = WIDTH) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)] if isinstance(blocks, int) else blocks)
        self.head = nn.Linear(width, width)
        self.order = list(range(len(self.blocks)))

    def forward(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.blocks[index](x)
        result: Tensor = self.head(x)
        return result


def stack(blocks: Sequence[nn.Module] | int = 5, width: int = WIDTH, seed: int = 0) -> Stack:
    """A stack with reproducible weights, ready for inference."""
    torch.manual_seed(seed)
    return Stack(blocks, width).eval().requires_grad_(False)


def part(model: nn.Module, path: str) -> Any:
    """A module inside a model, as whatever it is."""
    return model.get_submodule(path)


def example_input(width: int = WIDTH) -> Tensor:
    """Something to call a stack with."""
    return torch.randn(3, width, generator=torch.Generator().manual_seed(1))


Home = Callable[[str], str | None]
"""Name of a tensor to its donor, None for the compute device."""


def plan_for(
    model: nn.Module,
    machine: Machine,
    *,
    slots: int = 2,
    home: Home | None = None,
    paths: Sequence[str] | None = None,
) -> PlacementPlan:
    """A plan with a unit for each of `paths` (by default ``blocks.0`` ...), the rest resident.

    Without `home`, tensors of the units go to the donors in turn.
    """
    if paths is None:
        paths = [f"blocks.{index}" for index in range(len(model.get_submodule("blocks")._modules))]
    names = {held.name: stored_bytes(held.tensor) for held in take_inventory(model).held if not held.optional}

    def device(name: str, number: int) -> str:
        if home is None:
            return machine.donors[number % len(machine.donors)]
        return home(name) or machine.compute

    units = []
    for path in paths:
        inside = [name for name in names if name.startswith(f"{path}.")]
        homes = tuple(
            TensorHome(name=name, size_bytes=names.pop(name), device=device(name, number))
            for number, name in enumerate(inside)
        )
        units.append(UnitPlacement(path=path, class_name="", kind="block", homes=homes))
    rest = tuple(TensorHome(name=name, size_bytes=size, device=machine.compute) for name, size in names.items())
    units.append(UnitPlacement(path="", class_name="", kind="rest", homes=rest))
    return PlacementPlan(
        compute=machine.compute, donors=machine.donors, policy="stripe", slots=slots, units=tuple(units)
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of machine to place on.

    Attributes:
        compute: name of the compute device.
        donors: names of the donors.
        make_backend: a fresh backend.
        clock: what emulated links are timed by.
    """

    name: str
    compute: str
    donors: tuple[str, ...]
    make_backend: Callable[[], Backend]
    clock: VirtualClock = field(default_factory=VirtualClock)

    @property
    def device(self) -> torch.device:
        """Where forwards run."""
        return self.make_backend().device(self.compute)

    def run(self, model: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        """One pass on the compute device, its result on the host."""
        with torch.no_grad():
            result: Tensor = model(x.to(self.device), **arguments).cpu()
        return result


def same_device() -> Machine:
    """Everything on the CPU, nothing copied."""
    return Machine(name="same_device", compute="cpu", donors=("donor:0", "donor:1"), make_backend=SameDeviceBackend)


def emulated(donors: int = 1, *, gb_per_second: float = 1.0, capacities: dict[str, int] | None = None) -> Machine:
    """Emulated links on a clock that only copies move."""
    names = tuple(f"emulated:{index}" for index in range(1, donors + 1))
    links = [Link(source=name, target="emulated:0", gb_per_second=gb_per_second) for name in (*names, "cpu")]
    clock = VirtualClock()
    return Machine(
        name="emulated",
        compute="emulated:0",
        donors=names,
        make_backend=lambda: EmulatedBackend(links, clock=clock, capacities=capacities),
        clock=clock,
    )


def accelerator(sim: types.ModuleType, donors: tuple[str, ...] = ("cpu", "sim:1")) -> Machine:
    """Simulated accelerators."""
    assert sim is not None
    return Machine(name="accelerator", compute="sim:0", donors=donors, make_backend=AcceleratorBackend)


MACHINES = ("same_device", "emulated", "emulated-two-donors", "accelerator")


def machine_named(name: str, request: pytest.FixtureRequest) -> Machine:
    """The machine of this name; the simulated devices are installed when they are asked for, not before."""
    if name == "same_device":
        return same_device()
    if name == "accelerator":
        return accelerator(request.getfixturevalue("sim"))
    return emulated(2 if name == "emulated-two-donors" else 1)


class Packed(Tensor):
    """Weights as eighths of a scale: int8 codes and a float32 scale a row. Dequantises for every operator."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Packed:
        """Wrap codes and scales."""
        result: Packed = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)
        return result

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes = codes
        self.scale = scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> Packed:
        return Packed(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Packed(func(args[0].codes), func(args[0].scale))
        if func is torch.ops.aten._to_copy.default:
            arguments = {"device": (kwargs or {}).get("device")}
            return Packed(args[0].codes.to(**arguments), args[0].scale.to(**arguments))
        if func is torch.ops.aten.copy_.default:
            args[0].codes.copy_(args[1].codes)
            args[0].scale.copy_(args[1].scale)
            return args[0]
        dense = tree_map(lambda item: item.dense() if isinstance(item, Packed) else item, args)
        return func(*dense, **(kwargs or {}))

    def dense(self) -> Tensor:
        """The weights."""
        return self.codes * self.scale


def packed(rows: int, columns: int, seed: int = 0) -> nn.Parameter:
    """A packed parameter."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    scale = torch.rand(rows, 1, generator=generator)
    return nn.Parameter(Packed(codes, scale), requires_grad=False)
