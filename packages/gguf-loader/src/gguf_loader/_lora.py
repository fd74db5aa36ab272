"""LoRA on a model: adapters come, change their strength and go, and no weight is ever touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ._config import DequantConfig
from ._errors import GgufLoraError
from ._low_rank import LowRank, LowRankTerms


def add_lora(model: nn.Module, name: str, adapters: Mapping[str, LowRank], *, strength: float = 1.0) -> None:
    """Add an adapter to the linear layers of a model, packed or not.

    Args:
        model: whose layers get the terms, as forward hooks.
        name: what the adapter is called from now on.
        adapters: factors by the layer's name. They are converted to the `patch_dtype` of a packed layer's
            configuration, else to the dtype of its weight, and copied.
        strength: how much of it is added; 0 adds nothing and costs nothing.

    Raises:
        GgufLoraError: a layer is missing, is no linear layer, has the adapter already, or has other sizes. No layer is
            changed then.
    """
    fits = [(_layer(model, path), path, adapter) for path, adapter in adapters.items()]
    for layer, path, adapter in fits:
        _with_path(path, _terms_of(layer) or _new_terms(layer), name, adapter)
    for layer, _, adapter in fits:
        terms = _terms_of(layer)
        if terms is None:
            terms = _new_terms(layer)
            layer.add_module(_ATTRIBUTE, terms)
            terms.handle = layer.register_forward_hook(_add_terms)
        terms.add(name, adapter, strength)


def set_lora_strength(model: nn.Module, name: str, strength: float) -> None:
    """Change how much of an adapter is added, everywhere; no weight is touched.

    Raises:
        GgufLoraError: the model has no such adapter.
    """
    for _, terms in _layers_with(model, name):
        terms.set_strength(name, strength)


def remove_lora(model: nn.Module, name: str) -> None:
    """Take an adapter out of a model; with the last one of a layer, its hook goes too.

    Raises:
        GgufLoraError: the model has no such adapter.
    """
    for layer, terms in _layers_with(model, name):
        terms.remove(name)
        if not terms.strengths:
            if terms.handle is not None:
                terms.handle.remove()
            delattr(layer, _ATTRIBUTE)


def lora_strengths(model: nn.Module) -> dict[str, float]:
    """The adapters of a model and their strengths."""
    return {name: value for _, terms in _all_terms(model) for name, value in terms.strengths.items()}


def lora_from_state_dict(state_dict: Mapping[str, Tensor], *, prefix: str = "") -> dict[str, LowRank]:
    """Adapters by layer name from a LoRA file's tensors.

    Args:
        state_dict: `<layer>.lora_A.weight` and `.lora_B.weight`, or `.lora_down.weight` and `.lora_up.weight`, and
            perhaps `<layer>.alpha`.
        prefix: what stands before the layer's name in the model, such as `transformer.`.

    Returns:
        what `add_lora` takes.

    Raises:
        GgufLoraError: a name lacks the prefix, half of a pair is missing, or a tensor is of another method than LoRA.

    >>> import torch
    >>> tensors = {"t.proj.lora_A.weight": torch.zeros(4, 64), "t.proj.lora_B.weight": torch.zeros(32, 4)}
    >>> {name: adapter.rank for name, adapter in lora_from_state_dict(tensors, prefix="t.").items()}
    {'proj': 4}
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        suffix = next((known for known in _SUFFIXES if key.endswith(known)), None)
        if suffix is None or not key.startswith(prefix):
            raise GgufLoraError(
                f"{key!r} is no part of a LoRA pair{f' under {prefix!r}' if prefix else ''}",
                field=key,
                remedy=f"names are <prefix><layer> and one of {', '.join(_SUFFIXES)}; other methods are not low-rank",
            )
        found.setdefault(key[len(prefix) : -len(suffix)], {})[_SUFFIXES[suffix]] = tensor
    adapters = {}
    for layer, parts in found.items():
        if "down" not in parts or "up" not in parts:
            raise GgufLoraError(f"layer {layer!r} has {' and '.join(sorted(parts))} only", remedy="the file is damaged")
        alpha = parts.get("alpha")
        adapters[layer] = LowRank(
            down=parts["down"], up=parts["up"], alpha=None if alpha is None else float(alpha.item())
        )
    return adapters


_ATTRIBUTE = "lora_terms"

_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".lora_A.weight": "down",
        ".lora_B.weight": "up",
        ".lora_down.weight": "down",
        ".lora_up.weight": "up",
        ".alpha": "alpha",
    }
)


def _add_terms(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    terms = _terms_of(layer)
    return output if terms is None else terms.added_to(output, inputs[0])


def _terms_of(layer: nn.Module) -> LowRankTerms | None:
    terms = getattr(layer, _ATTRIBUTE, None)
    return terms if isinstance(terms, LowRankTerms) else None


def _new_terms(layer: nn.Linear) -> LowRankTerms:
    config = getattr(layer, "config", None)
    patch_dtype = config.patch_dtype if isinstance(config, DequantConfig) else None
    return LowRankTerms(
        layer.in_features,
        layer.out_features,
        dtype=patch_dtype or layer.weight.dtype,
        device=layer.weight.device,
    )


def _layer(model: nn.Module, path: str) -> nn.Linear:
    found = dict(model.named_modules()).get(path)
    if not isinstance(found, nn.Linear):
        raise GgufLoraError(
            f"layer {path!r} is {'not in the model' if found is None else f'a {type(found).__name__}'}",
            field=path,
            remedy="adapters go by the names of the model's linear layers; map the names, or leave the layer out",
        )
    return found


def _with_path(path: str, terms: LowRankTerms, name: str, adapter: LowRank) -> None:
    try:
        terms.require_fit(name, adapter)
    except GgufLoraError as error:
        error.field = path
        raise


def _all_terms(model: nn.Module) -> Iterator[tuple[nn.Module, LowRankTerms]]:
    for layer in model.modules():
        terms = _terms_of(layer)
        if terms is not None:
            yield layer, terms


def _layers_with(model: nn.Module, name: str) -> list[tuple[nn.Module, LowRankTerms]]:
    found = [(layer, terms) for layer, terms in _all_terms(model) if name in terms.strengths]
    if not found:
        known = ", ".join(sorted(lora_strengths(model))) or "none"
        raise GgufLoraError(f"the model has no adapter {name!r}", remedy=f"it has {known}")
    return found
