"""Adapters that come, change and go in any order: the model is always the one with just those adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from gguf_packing import packed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from gguf_loader import (
    GgufLoraError,
    LowRank,
    add_lora,
    load_packed,
    lora_strengths,
    remove_lora,
    set_lora_strength,
)

NAMES = st.sampled_from("abcd")
STRENGTHS = st.sampled_from([-1.5, -0.25, 0.0, 0.3, 1.0])
LAYERS = {"first": (64, 32), "second": (32, 32)}
X = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))


def make_model() -> nn.Sequential:
    """A packed layer, and one that a LoRA file may leave out."""
    model = nn.Sequential()
    model.add_module("first", nn.Linear(64, 32, device="meta"))
    model.add_module("second", nn.Linear(32, 32, bias=False, device="meta"))
    state: dict[str, Tensor] = {"first.weight": packed("Q4_0", 32, 64), "first.bias": torch.ones(32)}
    load_packed(model, state | {"second.weight": torch.eye(32)})
    return model


def factors(path: str, seed: int, rank: int) -> LowRank:
    inputs, outputs = LAYERS[path]
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    return LowRank(down=down / 8, up=up / 4, alpha=None if seed % 2 else 2.0)


class Histories(RuleBasedStateMachine):
    """A model, and beside it a plain list of what it should hold."""

    @initialize()
    def start(self) -> None:
        self.model = make_model()
        weights = {"first": packed("Q4_0", 32, 64).dequantize(), "second": torch.eye(32)}
        self.weights, self.bias = weights, torch.ones(32)
        self.held: dict[str, tuple[float, dict[str, LowRank]]] = {}

    @rule(
        name=NAMES,
        paths=st.sets(st.sampled_from(sorted(LAYERS)), min_size=1),
        seed=st.integers(0, 50),
        rank=st.integers(1, 5),
        strength=STRENGTHS,
    )
    def add(self, name: str, paths: set[str], seed: int, rank: int, strength: float) -> None:
        adapters = {path: factors(path, seed, rank) for path in sorted(paths)}
        if name in self.held:
            with pytest.raises(GgufLoraError, match="is there already"):
                add_lora(self.model, name, adapters, strength=strength)
        else:
            add_lora(self.model, name, adapters, strength=strength)
            self.held[name] = strength, adapters

    @rule(name=NAMES, strength=STRENGTHS)
    def change(self, name: str, strength: float) -> None:
        if name in self.held:
            set_lora_strength(self.model, name, strength)
            self.held[name] = strength, self.held[name][1]
        else:
            with pytest.raises(GgufLoraError, match="no adapter"):
                set_lora_strength(self.model, name, strength)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.held:
            remove_lora(self.model, name)
            del self.held[name]
        else:
            with pytest.raises(GgufLoraError, match="no adapter"):
                remove_lora(self.model, name)

    @rule()
    def copy(self) -> None:
        """From now on a copy of the model, whose hooks and factors are its own."""
        self.model = copy.deepcopy(self.model)

    @precondition(lambda self: self.held)
    @rule(value=st.sampled_from([float("nan"), float("inf")]))
    def refuse(self, value: float) -> None:
        with pytest.raises(GgufLoraError, match="finite"):
            set_lora_strength(self.model, next(iter(self.held)), value)

    @invariant()
    def the_model_holds_what_it_should(self) -> None:
        assert lora_strengths(self.model) == {name: strength for name, (strength, _) in self.held.items()}
        hooked = {path for path in LAYERS if self.model.get_submodule(path)._forward_hooks}
        assert hooked == {path for _, adapters in self.held.values() for path in adapters}
        assert list(self.model.state_dict()) == ["first.weight", "first.bias", "second.weight"]

    @invariant()
    def the_model_computes_what_patched_weights_compute(self) -> None:
        weights = dict(self.weights)
        for strength, adapters in self.held.values():
            for path, one in adapters.items():
                weights[path] = weights[path] + strength * one.scale * (one.up @ one.down)
        expected = nn.functional.linear(nn.functional.linear(X, weights["first"], self.bias), weights["second"])
        assert torch.allclose(self.model(X), expected, rtol=1e-3, atol=1e-3)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
