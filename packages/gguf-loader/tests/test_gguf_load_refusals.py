"""A state dict that does not fit: the complaint names exactly what is wrong, and the model is as it was."""

from __future__ import annotations

import pytest
import torch
from gguf_packing import packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gguf_loader import GgufModelError, PackedTensor, load_packed

STATE: dict[str, Tensor] = {
    "embed.weight": packed("Q8_0", 16, 32),
    "layers.0.weight": packed("Q4_0", 32, 32),
    "layers.0.bias": torch.ones(32),
    "layers.1.weight": packed("Q6_K", 8, 32),
    "norm.weight": packed("Q8_0", 32),
    "norm.bias": torch.zeros(32),
    "steps": torch.tensor(3),
}


def make_model() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(16, 32)
    model.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 8, bias=False)])
    model.norm = nn.LayerNorm(32)
    model.register_buffer("steps", torch.tensor(1))
    return model


def fingerprint(model: nn.Module) -> dict[str, tuple[type, int, int]]:
    """What a load must not change: classes, and which memory in which version."""
    found = {name: (type(module), id(module), 0) for name, module in model.named_modules()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return found | {name: (type(tensor), id(tensor), tensor._version) for name, tensor in tensors}


@st.composite
def misfits(draw: st.DrawFn) -> tuple[dict[str, Tensor], set[str], set[str], set[str]]:
    """A damaged state dict, and the names that are missing, unexpected and of another shape."""
    missing = draw(st.sets(st.sampled_from(sorted(STATE)), max_size=2))
    unexpected = draw(st.sets(st.sampled_from(["layers.2.weight", "head.bias", "embed"]), max_size=2))
    mismatched = draw(st.sets(st.sampled_from(sorted(set(STATE) - missing)), max_size=2))
    state = {name: tensor for name, tensor in STATE.items() if name not in missing}
    state |= dict.fromkeys(unexpected, torch.zeros(3))
    for name in mismatched:
        state[name] = packed("Q8_0", 5, 32) if draw(st.booleans()) else torch.zeros(7)
    return state, missing, unexpected, mismatched


@given(damaged=misfits())
@settings(max_examples=60, deadline=None)
def test_a_misfit_is_told_whole_and_changes_nothing(
    damaged: tuple[dict[str, Tensor], set[str], set[str], set[str]],
) -> None:
    state, missing, unexpected, mismatched = damaged
    model = make_model()
    before = fingerprint(model)
    if not (missing or unexpected or mismatched):
        assert load_packed(model, state).missing == ()
        return
    with pytest.raises(GgufModelError, match="the state dict does not fit the model") as caught:
        load_packed(model, state)
    assert set(caught.value.missing) == missing
    assert set(caught.value.unexpected) == unexpected
    assert set(caught.value.mismatched) == mismatched
    for name, (found, wanted) in caught.value.mismatched.items():
        assert (found, wanted) == (tuple(state[name].shape), tuple(STATE[name].shape))
    assert fingerprint(model) == before


@given(damaged=misfits())
@settings(max_examples=40, deadline=None)
def test_without_strict_only_another_shape_is_a_misfit(
    damaged: tuple[dict[str, Tensor], set[str], set[str], set[str]],
) -> None:
    state, missing, unexpected, mismatched = damaged
    model = make_model()
    before = fingerprint(model)
    if mismatched:
        with pytest.raises(GgufModelError) as caught:
            load_packed(model, state, strict=False)
        assert (caught.value.missing, caught.value.unexpected) == ((), ())
        assert set(caught.value.mismatched) == mismatched
        assert fingerprint(model) == before
        return
    report = load_packed(model, state, strict=False)
    assert (set(report.missing), set(report.unexpected)) == (missing, unexpected)
    assert {*report.packed, *report.dequantized, *report.plain} == set(STATE) - missing
    for name in missing:
        assert fingerprint(model)[name] == before[name]


@given(names=st.sets(st.sampled_from(sorted(name for name in STATE if name.endswith("weight")))))
@settings(max_examples=30, deadline=None)
def test_every_name_has_one_fate_and_the_values_are_those_of_the_file(names: set[str]) -> None:
    model = make_model()
    report = load_packed(model, STATE, dense=names)
    fates = [*report.packed, *report.dequantized, *report.plain]
    assert sorted(fates) == sorted(STATE)
    assert set(report.packed) == {"embed.weight", "layers.0.weight", "layers.1.weight"} - names
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, PackedTensor) is (name in report.packed)
        assert torch.equal(exact(tensor), exact(STATE[name]))


def exact(tensor: Tensor) -> Tensor:
    return tensor.dequantize(torch.float32) if isinstance(tensor, PackedTensor) else tensor
