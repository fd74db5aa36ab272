"""Pack the weights of a model, and unpack them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from device_placement.packed._errors import PackedError
from device_placement.packed._sizes import LEAST_WEIGHTS
from device_placement.packed._tensor import PackedWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """What became of a model's weights.

    Attributes:
        packed: names of the parameters that are packed now.
        dense_bytes: what these took before.
        packed_bytes: what they take now.
        incompressible: names of those that packing would not make smaller.
    """

    packed: tuple[str, ...]
    dense_bytes: int
    packed_bytes: int
    incompressible: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Packed bytes for each byte before; 1.0 where nothing was packed."""
        return self.packed_bytes / self.dense_bytes if self.dense_bytes else 1.0


def pack_model(
    model: nn.Module,
    *,
    units: Collection[str] | None = None,
    least_weights: int = LEAST_WEIGHTS,
    encode_on: torch.device | str | None = None,
) -> PackReport:
    """Replace the large bf16 parameters of a model by packed ones, without changing a bit of what it computes.

    Packed are contiguous parameters of two dimensions and more, tied ones once. Lookup tables stay dense, since to look
    up one row would decode all. `state_dict` of the model gives dense weights from then on. One tensor exists twice at
    a time. To be called before the model is placed and compiled; it is for inference: packed weights have no gradient.

    Args:
        model: with its weights loaded; anything but bf16 is unchanged.
        units: paths of modules; only parameters under these are packed. None packs all.
        least_weights: smaller parameters stay dense.
        encode_on: device that does the work; None: where each weight is. A weight returns to its device.

    Raises:
        PackedError: a path of `units` is not a module of the model.

    >>> layer = nn.Linear(256, 256, dtype=torch.bfloat16)
    >>> x = torch.ones(1, 256, dtype=torch.bfloat16)
    >>> before = layer(x)
    >>> pack_model(layer).packed, torch.equal(layer(x), before)
    (('weight',), True)
    """
    if units is not None:
        for path in units:
            _require_module(model, path)
    packed: list[str] = []
    incompressible: list[str] = []
    dense_bytes = packed_bytes = 0
    for entries in _tied_entries(model):
        if not _may_be_packed(entries, least_weights, units):
            continue
        parameter = entries[0].parameter
        weight = PackedWeight.of(parameter.detach() if encode_on is None else parameter.detach().to(encode_on))
        if weight is None:
            incompressible.append(entries[0].name)
            continue
        packed.append(entries[0].name)
        dense_bytes += parameter.nbytes
        packed_bytes += weight.nbytes
        _replace(entries, nn.Parameter(weight.to(parameter.device), requires_grad=False))
        _let_save_dense(entries)
    return PackReport(
        packed=tuple(packed), dense_bytes=dense_bytes, packed_bytes=packed_bytes, incompressible=tuple(incompressible)
    )


def unpack_model(model: nn.Module) -> tuple[str, ...]:
    """Replace the packed parameters of a model by dense ones, and return their names.

    One tensor exists twice at a time.
    """
    unpacked = []
    for entries in _tied_entries(model):
        weight = entries[0].parameter
        if isinstance(weight, PackedWeight):
            _replace(entries, nn.Parameter(weight.dense(), requires_grad=False))
            unpacked.append(entries[0].name)
    for module in model.modules():
        for key in [key for key, hook in module._state_dict_hooks.items() if hook is _save_dense]:
            del module._state_dict_hooks[key]
    return tuple(unpacked)


def keep_suitable(model: nn.Module) -> None:
    """Unpack the packed weights of modules that cannot use them, and let the others be saved dense."""
    for entries in _tied_entries(model):
        weight = entries[0].parameter
        if not isinstance(weight, PackedWeight):
            continue
        if _needs_dense(entries):
            _replace(entries, nn.Parameter(weight.dense(), requires_grad=False))
        else:
            _let_save_dense(entries)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A place of a module that refers to a parameter."""

    owner: nn.Module
    key: str
    name: str

    @property
    def parameter(self) -> Tensor:
        found = self.owner._parameters[self.key]
        assert found is not None
        return found


def _tied_entries(model: nn.Module) -> list[list[_Entry]]:
    """All entries of a model, those of one parameter together."""
    by_parameter: dict[int, list[_Entry]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{path}.{key}" if path else key
                by_parameter.setdefault(id(parameter), []).append(_Entry(module, key, name))
    return list(by_parameter.values())


def _may_be_packed(entries: list[_Entry], least_weights: int, units: Collection[str] | None) -> bool:
    parameter = entries[0].parameter
    if _needs_dense(entries):
        return False
    if units is not None and not all(any(_is_under(entry.name, path) for path in units) for entry in entries):
        return False
    # Only tensors that plain torch made: another subclass has another meaning.
    if type(parameter) not in (Tensor, nn.Parameter) or parameter.layout is not torch.strided or parameter.is_meta:
        return False
    large = parameter.ndim >= 2 and parameter.numel() >= least_weights
    return large and parameter.dtype == torch.bfloat16 and parameter.is_contiguous()


def _needs_dense(entries: list[_Entry]) -> bool:
    """Whether one row of it is read at a time, or a recurrent layer keeps it in a second list."""
    return any(isinstance(entry.owner, (nn.Embedding, nn.EmbeddingBag, nn.RNNBase)) for entry in entries)


def _is_under(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _require_module(model: nn.Module, path: str) -> None:
    try:
        model.get_submodule(path)
    except AttributeError as error:
        raise PackedError(f"the model has no module {path!r}; name units of this model") from error


def _replace(entries: list[_Entry], parameter: nn.Parameter) -> None:
    for entry in entries:
        entry.owner._parameters[entry.key] = parameter


def _let_save_dense(entries: list[_Entry]) -> None:
    for entry in entries:
        if _save_dense not in entry.owner._state_dict_hooks.values():
            entry.owner.register_state_dict_post_hook(_save_dense)  # type: ignore[no-untyped-call]


def _save_dense(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """What is saved of a packed model is what would be saved of the dense one."""
    for key, parameter in module._parameters.items():
        if isinstance(parameter, PackedWeight):
            state_dict[prefix + key] = parameter.dense()
