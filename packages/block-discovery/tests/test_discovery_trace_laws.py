"""Laws of traces, on random module trees that are called as their containers like it."""

from __future__ import annotations

from typing import Any

import torch
from discovery_testing import modules_with_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from block_discovery import BlockTree, CallTrace, discover, trace_calls


class Seen(nn.Module):
    """Calls whatever the plan says of a module, in that order; weights are not used, so that any shape will do."""

    def __init__(self, inner: nn.Module, plan: list[str]) -> None:
        super().__init__()
        self.inner = inner
        self.plan = plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for path in self.plan:
            self.inner.get_submodule(path)(x)
        return x


def silenced(module: nn.Module) -> nn.Module:
    """The same tree, in which every call of a module calls its children and computes nothing."""
    for part in module.modules():
        children = list(part.children())

        def forward(x: torch.Tensor, *rest: Any, inside: list[nn.Module] = children) -> torch.Tensor:
            for child in inside:
                if type(child).forward is not nn.Module.forward:
                    child(x)
            return x

        if type(part).forward is not nn.Module.forward:
            part.forward = forward
    return module


@st.composite
def traces(draw: st.DrawFn) -> tuple[BlockTree, CallTrace, list[str]]:
    """A tree, the trace of a few calls of its parts, and the paths that were called from outside."""
    model = silenced(draw(modules_with_tensors))
    callable_paths = [path for path, part in model.named_modules() if path and "forward" in vars(part)]
    plan = draw(st.lists(st.sampled_from(callable_paths), max_size=6)) if callable_paths else []
    seen = Seen(model, plan)
    tree = discover(seen)
    with torch.no_grad(), trace_calls(seen, tree) as trace:
        seen(torch.zeros(1))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in seen.modules())
    return tree, trace, [f"inner.{path}" for path in plan]


@given(traced=traces())
@settings(max_examples=80, deadline=None)
def test_a_trace_moves_tensors_between_units_and_loses_none(traced: tuple[BlockTree, CallTrace, list[str]]) -> None:
    tree, trace, _ = traced
    before = sorted((tensor.name, tensor.size_bytes) for unit in tree.units for tensor in unit.tensors)
    after = sorted((tensor.name, tensor.size_bytes) for unit in trace.tree.units for tensor in unit.tensors)
    assert after == before
    assert trace.tree.tied == tree.tied


@given(traced=traces())
@settings(max_examples=80, deadline=None)
def test_no_unit_holds_what_was_called_from_outside_of_it(traced: tuple[BlockTree, CallTrace, list[str]]) -> None:
    """A hook on the unit would not fire, and its weights would not be there: what placement relies on."""
    _, trace, called = traced
    for unit in trace.tree.units:
        for tensor in unit.tensors:
            users = [path for path in called if tensor.name.startswith(f"{path}.")]
            assert not any(path.startswith(f"{unit.path}.") for path in users if unit.path)


@given(traced=traces())
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_the_calls(traced: tuple[BlockTree, CallTrace, list[str]]) -> None:
    _, trace, _ = traced
    assert sum(trace.counts.values()) == len(trace.calls)
    assert {path for path, count in trace.counts.items() if count} == set(trace.calls)
    assert set(trace.counts) == {unit.path for unit in trace.tree.units if unit.path}


@given(traced=traces())
@settings(max_examples=40, deadline=None)
def test_a_traced_tree_survives_json(traced: tuple[BlockTree, CallTrace, list[str]]) -> None:
    _, trace, _ = traced
    assert BlockTree.from_json(trace.tree.to_json()) == trace.tree
