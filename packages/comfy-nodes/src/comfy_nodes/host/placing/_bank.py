"""A donor's share of a model as an ordinary model of the host, so that the host budgets, loads and evicts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

HOME = torch.device("cpu")
"""Where a donor's share waits while it is not loaded."""


class _Slot(nn.Module):
    """One layer's parameters, under the names they have in the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, parameter in layer.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move the parameters; new ones, because torch cannot change the storage of every kind in place."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(function(parameter.data), requires_grad=False)
        return self


class Bank(nn.Module):
    """The parameters that live on one donor: the very parameters of the layers, registered a second time.

    Attributes:
        slots: one for each layer.
        layers: the layers themselves, which stay part of their model alone.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.slots = nn.ModuleList(_Slot(layer) for layer in layers)
        self.layers = tuple(layers)
        self.device: torch.device | None = None

    def share(self) -> None:
        """Give every layer its present parameters; moving may have made new ones."""
        for slot, layer in zip(self.slots, self.layers, strict=True):
            for name, parameter in slot._parameters.items():
                layer._parameters[name] = parameter


class BankPatcher(ModelPatcher):  # type: ignore[misc]  # the host's classes are untyped
    """Moves a bank between its donor and the host's memory, as the host decides."""

    def load(self, *args: Any, **kwargs: Any) -> Any:
        """Move what fits to the donor."""
        result = super().load(*args, **kwargs)
        self.model.share()
        return result

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Move some of it back."""
        result = super().partially_unload(*args, **kwargs)
        self.model.share()
        return result

    def unpatch_model(self, *args: Any, **kwargs: Any) -> Any:
        """Move all of it back."""
        result = super().unpatch_model(*args, **kwargs)
        self.model.share()
        return result


def bank_patcher(layers: Sequence[nn.Module], donor: torch.device) -> BankPatcher:
    """A patcher for the layers that live on `donor`."""
    return BankPatcher(Bank(layers), load_device=donor, offload_device=HOME)
