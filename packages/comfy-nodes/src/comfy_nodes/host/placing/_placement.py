"""Where the layers of one loaded model live: kept with the model, so that all clones of its patcher share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from comfy_nodes.host.placing._bank import HOME, BankPatcher, bank_patcher

ATTRIBUTE = "_torchspan_placement"


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Homes of the layers that do not live where the model computes.

    Attributes:
        compute: the device that runs the forwards.
        homes: donor of each layer, by module name.
        layers: the layers themselves.
        banks: one patcher for each donor but the host's memory.
    """

    compute: torch.device
    homes: Mapping[str, torch.device]
    layers: Mapping[str, nn.Module]
    banks: tuple[BankPatcher, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model is placed again, or not at all: its layers are others."""

    def own_modules(self, model: nn.Module) -> Iterator[nn.Module]:
        """The modules whose parameters the model's own patcher moves: all but the donors'."""
        donors = set(map(id, self.layers.values()))
        return (module for module in model.modules() if id(module) not in donors)

    @property
    def largest_layer_bytes(self) -> int:
        """Bytes of the largest layer on a donor: what one copy of weights needs on the compute device."""
        return max((layer_bytes(layer) for layer in self.layers.values()), default=0)


def placement_of(model: nn.Module) -> Placement | None:
    """The placement of a model, if it has one."""
    return getattr(model, ATTRIBUTE, None)


def settle(model: nn.Module, homes: Mapping[str, torch.device], compute: torch.device) -> Placement:
    """Give the layers of a model their homes; nothing moves before the host loads the model.

    Args:
        model: with all weights in the host's memory.
        homes: donor by module name; layers that are not named compute and live on `compute`.
        compute: device that runs the forwards.
    """
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in homes}
    for layer in layers.values():
        # Their weights are never where they are used, so the layer has to bring them over at each use.
        layer.comfy_cast_weights = True
    donors = dict.fromkeys(device for device in homes.values() if device != HOME)
    banks = tuple(
        bank_patcher([layers[name] for name, device in homes.items() if device == donor], donor) for donor in donors
    )
    placement = Placement(compute, dict(homes), layers, banks)
    setattr(model, ATTRIBUTE, placement)
    return placement


def rebased(placement: Placement, compute: torch.device) -> dict[str, torch.device]:
    """Homes for a copy of the model that computes on another device: what lived there is resident now."""
    return {name: device for name, device in placement.homes.items() if device != compute}


def layer_bytes(layer: nn.Module) -> int:
    """Bytes of a layer's own parameters and buffers; packed ones count packed."""
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def move_own(module: nn.Module, device: torch.device) -> None:
    """Move a module's own parameters and buffers, not those of its children."""
    module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]
