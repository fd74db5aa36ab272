"""LoRA on a model: adapters come, change their strength and go, and no weight is ever touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from gguf_loader._errors import GgufLoraError, quoted

from ._config import DequantConfig
from ._low_rank import LowRank, LowRankTerms, require_finite


def add_lora(model: nn.Module, name: str, adapters: Mapping[str, LowRank], *, strength: float = 1.0) -> None:
    """Add an adapter to the linear layers of a model, packed or not.

    Args:
        model: whose layers get the terms, as forward hooks.
        name: what the adapter is called from now on.
        adapters: factors by the layer's name. They are converted to the `patch_dtype` of a packed layer's
            configuration, else to the dtype of its weight, and copied.
        strength: how much of it is added; 0 adds nothing and costs nothing.

    Raises:
        GgufLoraError: the model has an adapter of the name, a layer is missing, is no linear layer, is given under two
            names or has other sizes, or the strength is not finite. No layer is changed then.
    """
    require_finite(f"the strength of adapter {quoted(name)}", strength)
    if name in lora_strengths(model):
        raise GgufLoraError(f"adapter {quoted(name)} is there already", remedy="remove it first, or set its strength")
    fits = [(_layer(model, path), path, adapter) for path, adapter in adapters.items()]
    _refuse_twice((layer, path) for layer, path, _ in fits)
    for layer, path, adapter in fits:
        with _naming(path):
            (_terms_of(layer) or _new_terms(layer)).require_fit(name, adapter)
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
        GgufLoraError: the model has no such adapter, or the strength is not finite.
    """
    require_finite(f"the strength of adapter {quoted(name)}", strength)
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
        state_dict: `<layer>.lora_A.weight` and `.lora_B.weight`, or `.lora_down.weight` and `.lora_up.weight`; perhaps
            `<layer>.alpha`; perhaps `<layer>.lora_B.bias` (PEFT, scaled as the factors are) or `<layer>.diff_b` (kohya,
            not scaled).
        prefix: what stands before the layer's name in the model, such as `transformer.`.

    Returns:
        what `add_lora` takes.

    Raises:
        GgufLoraError: a name lacks the prefix, half of a pair is missing or there twice, the factors do not fit each
            other, or a tensor is another kind of patch than LoRA (DoRA, LoHa, LoKr, `.diff`, `.set_weight`, norm keys).

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
                f"{quoted(key)} is not part of a LoRA pair{f' under {prefix!r}' if prefix else ''}",
                field=key,
                remedy=f"names are <prefix><layer> and one of {', '.join(_SUFFIXES)}; merge other patches into "
                "the original checkpoint and convert that",
            )
        layer, part = key[len(prefix) : -len(suffix)], _SUFFIXES[suffix]
        parts = found.setdefault(layer, {})
        if part in parts:
            raise GgufLoraError(f"layer {quoted(layer)} has its {part} twice", field=key, remedy="the file is damaged")
        if part == "alpha" and tensor.numel() != 1:
            raise GgufLoraError(
                f"holds {tensor.numel()} numbers, where one is needed", field=key, remedy="the file is damaged"
            )
        parts[part] = tensor
    adapters = {}
    for layer, parts in found.items():
        if "down" not in parts or "up" not in parts:
            raise GgufLoraError(
                f"layer {quoted(layer)} has {' and '.join(sorted(parts))} only", remedy="the file is damaged"
            )
        alpha = float(parts["alpha"].item()) if "alpha" in parts else None
        with _naming(layer):
            adapters[layer] = _with_bias(LowRank(down=parts["down"], up=parts["up"], alpha=alpha), parts)
    return adapters


_ATTRIBUTE = "lora_terms"

_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".lora_A.weight": "down",
        ".lora_B.weight": "up",
        ".lora_down.weight": "down",
        ".lora_up.weight": "up",
        ".lora_B.bias": "scaled bias",
        ".diff_b": "bias",
        ".alpha": "alpha",
    }
)


def _with_bias(adapter: LowRank, parts: Mapping[str, Tensor]) -> LowRank:
    if "bias" in parts and "scaled bias" in parts:
        raise GgufLoraError("two bias differences, .lora_B.bias and .diff_b", remedy="the file is damaged")
    if "scaled bias" in parts:
        return replace(adapter, bias=parts["scaled bias"].float() * adapter.scale)
    return replace(adapter, bias=parts.get("bias"))


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
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        raise GgufLoraError(
            f"layer {quoted(path)} is {'not in the model' if found is None else f'a {type(found).__name__}'}",
            field=path,
            remedy="adapters go by the names of the model's linear layers; map the names, or leave the layer out",
        )
    return found


def _refuse_twice(layers: Iterable[tuple[nn.Module, str]]) -> None:
    paths: dict[int, str] = {}
    for layer, path in layers:
        first = paths.setdefault(id(layer), path)
        if first != path:
            raise GgufLoraError(
                f"layer {quoted(path)} is layer {quoted(first)} under another name",
                field=path,
                remedy="give it one adapter",
            )


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """What is wrong with an adapter, said of its layer."""
    try:
        yield
    except GgufLoraError as error:
        error.field = layer
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
        raise GgufLoraError(f"the model has no adapter {quoted(name)}", remedy=f"it has {known}")
    return found
