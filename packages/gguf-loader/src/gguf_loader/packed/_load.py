"""Putting a state dict of packed tensors into a model, each tensor as packed as its owner can hold it."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gguf_loader._dtypes import LOGICAL_DTYPES
from gguf_loader._errors import GgufModelError, listed, quoted

from ._config import DequantConfig
from ._layers import GgufConv1d, GgufConv2d, GgufConv3d, GgufEmbedding, GgufLinear, PackedLayer
from ._tensor import PackedTensor

_LOG = logging.getLogger(__name__)

_PACKED_CLASSES: Mapping[type[nn.Module], type[PackedLayer]] = MappingProxyType(
    {
        nn.Linear: GgufLinear,
        nn.Embedding: GgufEmbedding,
        nn.Conv1d: GgufConv1d,
        nn.Conv2d: GgufConv2d,
        nn.Conv3d: GgufConv3d,
    }
)

_TORCH_CLASSES: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {packed: plain for plain, packed in _PACKED_CLASSES.items()}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of each tensor.

    Attributes:
        packed: names that stay packed.
        dequantized: names that were packed and are dense now, because their owner computes with dense numbers.
        plain: names that were dense already.
        missing: names of the model that got no value (only without `strict`).
        unexpected: names that the model does not have (only without `strict`).
        on_meta: parameters and buffers that are still without memory, such as buffers that are not saved.
    """

    packed: tuple[str, ...]
    dequantized: tuple[str, ...]
    plain: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    on_meta: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """Where a tensor of the model lives."""

    name: str
    owner: nn.Module
    leaf: str
    held: Tensor

    @property
    def is_parameter(self) -> bool:
        return self.leaf in self.owner._parameters


def load_packed(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    config: DequantConfig | None = None,
    dense: Container[str] = (),
    strict: bool = True,
) -> LoadReport:
    """Load packed and plain tensors into a model, which is best built on the meta device.

    Weights of `torch.nn.Linear`, `Embedding` and `Conv1d` to `Conv3d` stay packed, and their layers become `GgufLinear`
    and so on in place: same object, same name, same hooks. Subclasses of those layers have a forward of their own, and
    other modules (norms, bare parameters) compute with dense parameters, so theirs are dequantised once.
    Tensors are taken over, not copied, unless their dtype differs from what the model declares; packed tensors take the
    declared dtype as the one that they dequantise to. Tied parameters stay tied. Nothing requires a gradient after.

    A model may be loaded again, from a file of another mixture of types: a packed layer that gets dense weights is the
    ordinary torch layer again.

    Args:
        model: changed in place.
        state_dict: by the model's own names; `PackedTensor` or ordinary tensors, on any one device.
        config: how the model dequantises; a fresh default when not given.
        dense: names to dequantise although their owner could hold them packed, for code that reads `layer.weight`.
        strict: whether missing and unexpected names are an error.

    Returns:
        what became of each name.

    Raises:
        GgufModelError: names or shapes do not fit. The model is unchanged then.
    """
    config = DequantConfig() if config is None else config
    slots = {slot.name: slot for slot in _slots(model)}
    provided = {id(slots[name].held) for name in state_dict if name in slots}
    missing = tuple(name for name, slot in slots.items() if name not in state_dict and id(slot.held) not in provided)
    unexpected = tuple(name for name in state_dict if name not in slots)
    _require_fit(state_dict, slots, (missing, unexpected) if strict else ((), ()))

    by_tensor: dict[int, list[_Slot]] = {}
    for slot in slots.values():
        by_tensor.setdefault(id(slot.held), []).append(slot)
    packed, dequantized, plain = [], [], []
    for tied in by_tensor.values():
        names = [slot.name for slot in tied if slot.name in state_dict]
        if not names:
            continue
        value = state_dict[names[0]]
        if not isinstance(value, PackedTensor):
            plain += names
            _assign_dense(tied, value)
        elif all(_holds_packed(slot, value) for slot in tied) and not any(name in dense for name in names):
            packed += names
            declared = tied[0].held.dtype
            _assign(tied, value.with_blocks(value.packed, dtype=declared if declared in LOGICAL_DTYPES else None))
            for slot in tied:
                _pack(slot.owner, config)
        else:
            dequantized += names
            _assign_dense(tied, value.dequantize(torch.float32, scratch=config.scratch))
    on_meta = tuple(slot.name for slot in _slots(model, saved_only=False) if slot.held.is_meta)
    if on_meta:
        _LOG.warning("%d tensors still have no memory, among them %s", len(on_meta), on_meta[0])
    return LoadReport(
        packed=tuple(packed),
        dequantized=tuple(dequantized),
        plain=tuple(plain),
        missing=missing,
        unexpected=unexpected,
        on_meta=on_meta,
    )


def configure(model: nn.Module, config: DequantConfig) -> int:
    """Give all packed layers of a model another configuration.

    Returns:
        how many layers there are.
    """
    layers = list(packed_layers(model))
    for _, layer in layers:
        layer.config = config
    return len(layers)


def packed_layers(model: nn.Module) -> Iterator[tuple[str, PackedLayer]]:
    """The packed layers of a model with their names, each once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, PackedLayer))


def _slots(model: nn.Module, *, saved_only: bool = True) -> Iterator[_Slot]:
    for prefix, owner in model.named_modules(remove_duplicate=False):
        unsaved = owner._non_persistent_buffers_set if saved_only else ()
        held: Iterable[tuple[str, Tensor | None]] = (*owner._parameters.items(), *owner._buffers.items())
        for leaf, tensor in held:
            if tensor is not None and leaf not in unsaved:
                name = f"{prefix}.{leaf}" if prefix else leaf
                yield _Slot(name=name, owner=owner, leaf=leaf, held=tensor)


def _require_fit(
    state_dict: Mapping[str, Tensor], slots: Mapping[str, _Slot], names: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    missing, unexpected = names
    mismatched = {
        name: (tuple(tensor.shape), tuple(slots[name].held.shape))
        for name, tensor in state_dict.items()
        if name in slots and tensor.shape != slots[name].held.shape
    }
    if not (missing or unexpected or mismatched):
        return
    parts = [f"{len(missing)} missing ({listed(missing)})"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({listed(unexpected)})"] if unexpected else []
    parts += [f"{quoted(name)} is {found}, not {wanted}" for name, (found, wanted) in list(mismatched.items())[:3]]
    error = GgufModelError(
        f"the state dict does not fit the model: {'; '.join(parts)}",
        remedy="map the names to the model's own, or build the model that the file was made from",
    )
    error.missing, error.unexpected, error.mismatched = missing, unexpected, mismatched
    raise error


def _holds_packed(slot: _Slot, value: PackedTensor) -> bool:
    owner = slot.owner
    if slot.leaf != "weight" or not (type(owner) in _PACKED_CLASSES or isinstance(owner, PackedLayer)):
        return False
    if isinstance(owner, nn.Embedding):
        return owner.max_norm is None and value.shape[1] % value.ggml_type.block_size == 0
    return True


def _pack(layer: nn.Module, config: DequantConfig) -> None:
    # The class changes and not the object, so that references to the layer, its hooks and its name stay good.
    if not isinstance(layer, PackedLayer):
        layer.__class__ = _PACKED_CLASSES[type(layer)]
    packed: Any = layer
    packed.config = config


def _assign_dense(tied: list[_Slot], value: Tensor) -> None:
    _assign(tied, value.to(tied[0].held.dtype))
    for slot in tied:
        if slot.leaf == "weight" and isinstance(slot.owner, PackedLayer):
            plain: Any = slot.owner
            plain.__class__ = _TORCH_CLASSES[type(slot.owner)]
            del plain.config


def _assign(tied: list[_Slot], value: Tensor) -> None:
    parameter = nn.Parameter(value, requires_grad=False) if tied[0].is_parameter else value
    for slot in tied:
        setattr(slot.owner, slot.leaf, parameter)
