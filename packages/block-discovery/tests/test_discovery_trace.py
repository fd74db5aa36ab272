"""The order of calls: what a hook on a unit sees, and what it does not."""

from __future__ import annotations

import pytest
import torch
from discovery_testing import Block, Chain, blocks, names_in, paths
from torch import nn

from block_discovery import CallTrace, UnknownUnitError, discover, discover_names, trace_calls

X = torch.zeros(2, 8)


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def traced(model: nn.Module, *, passes: int = 1) -> CallTrace:
    """The trace of some forwards."""
    with trace_calls(model, discover(model)) as trace:
        for _ in range(passes):
            model(X)
    return trace


def test_calls_are_recorded_in_their_order() -> None:
    trace = traced(Chain(stem=nn.Linear(8, 8), layers=blocks(3), head=nn.Linear(8, 8)), passes=2)
    assert trace.calls == ("stem", "layers.0", "layers.1", "layers.2", "head") * 2
    assert trace.tree == trace.given
    assert set(trace.counts.values()) == {2}


class Backwards(Chain):
    """Calls its blocks from the last to the first, the last one twice, and never the one named unused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in reversed([*self.layers, self.layers[-1]]):
            x = block(x)
        return x


def test_the_real_order_and_multiplicity_count_not_the_registered_ones() -> None:
    trace = traced(Backwards(layers=blocks(3), unused=nn.Linear(8, 8)))
    assert trace.calls == ("layers.2", "layers.2", "layers.1", "layers.0")
    assert trace.counts == {"layers.0": 1, "layers.1": 1, "layers.2": 2, "unused": 0}
    assert trace.tree == trace.given


class Bypassing(Chain):
    """Loops over the children of its containers instead of calling them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for container in self.input_blocks:
            for layer in container:
                x = layer(x)
        return x


def test_a_bypassed_unit_is_divided_into_the_parts_that_were_called() -> None:
    layers = [nn.Sequential(Block(), nn.Linear(8, 8)) for _ in range(10)]
    trace = traced(Bypassing(input_blocks=nn.ModuleList(layers)))
    assert paths(trace.given) == [f"input_blocks.{index}" for index in range(10)]
    expected = [f"input_blocks.{index}.{part}" for index in range(10) for part in (0, 1)]
    assert list(trace.calls) == paths(trace.tree) == expected
    first, second = trace.tree.units[:2]
    assert (first.class_name, first.kind, first.group) == ("Block", "block", "input_blocks.0")
    assert (second.class_name, second.kind, second.group) == ("Linear", "leaf", "input_blocks.0")
    assert trace.tree.size_bytes == trace.given.size_bytes


class Reordering(Chain):
    """Bypasses its container and calls the parts from the last to the first; one parameter it reads itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for container in self.layers:
            x = container.first(container.second(x)) * container.scale
        return x


def reordering() -> Reordering:
    layers = [Chain(first=nn.Linear(8, 8), second=nn.Linear(8, 8)) for _ in range(3)]
    for layer in layers:
        layer.scale = nn.Parameter(torch.ones(8))
    return Reordering(layers=nn.ModuleList(layers))


def test_parts_stand_in_the_order_of_the_model_and_calls_in_their_own() -> None:
    trace = traced(reordering())
    assert paths(trace.tree)[:2] == ["layers.0.first", "layers.0.second"]
    assert trace.calls[:2] == ("layers.0.second", "layers.0.first")


def test_what_no_call_covers_goes_to_the_rest() -> None:
    trace = traced(reordering())
    assert names_in(trace.tree, "") == ["layers.0.scale", "layers.1.scale", "layers.2.scale"]
    assert trace.tree.size_bytes == trace.given.size_bytes


class Peeking(Chain):
    """Calls its blocks, and a layer inside the first one from outside as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            x = block(x)
        out: torch.Tensor = x + self.layers[0].norm(x)
        return out


def test_a_layer_called_within_its_unit_and_from_outside_stays_resident() -> None:
    trace = traced(Peeking(layers=blocks(4)))
    assert trace.calls == ("layers.0", "layers.1", "layers.2", "layers.3")
    assert names_in(trace.tree, "") == ["layers.0.norm.weight", "layers.0.norm.bias"]
    assert "layers.0.norm.weight" not in names_in(trace.tree, "layers.0")


class Nested(Chain):
    """Bypasses its containers, and calls both a part and a layer inside that part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for container in self.layers:
            x = container.block(x) + container.block.norm(x)
        return x


def test_a_layer_inside_a_called_part_that_is_also_called_itself_stays_resident() -> None:
    containers = [Chain(block=Block(), unused=nn.Linear(8, 8)) for _ in range(2)]
    trace = traced(Nested(layers=nn.ModuleList(containers)))
    assert paths(trace.tree) == ["layers.0.block", "layers.1.block"]
    assert "layers.0.block.norm.weight" in names_in(trace.tree, "")
    assert "layers.0.unused.weight" in names_in(trace.tree, "")


def test_calls_inside_a_unit_are_not_reported() -> None:
    assert traced(Chain(layers=blocks(2))).calls == ("layers.0", "layers.1")


class Recursive(Block):
    """Calls itself once more."""

    depth = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.depth:
            return super().forward(x)
        self.depth = 1
        out: torch.Tensor = self(x)
        self.depth = 0
        return out


def test_a_unit_that_calls_itself_is_counted_each_time() -> None:
    assert traced(Chain(layers=nn.ModuleList([Recursive(), Recursive()]))).counts == {"layers.0": 2, "layers.1": 2}


class Failing(Block):
    """Raises when it is told to."""

    broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.broken:
            raise ArithmeticError("broken")
        return super().forward(x)


def test_a_forward_that_fails_leaves_the_trace_and_the_model_usable() -> None:
    model = Chain(layers=nn.ModuleList([Failing(), Failing(), Failing()]))
    with trace_calls(model, discover(model)) as trace:
        model.layers[1].broken = True
        with pytest.raises(ArithmeticError):
            model(X)
        model.layers[1].broken = False
        model(X)
    assert trace.calls == ("layers.0", "layers.1", "layers.0", "layers.1", "layers.2")
    assert hook_count(model) == 0


def test_a_part_that_failed_once_is_seen_again() -> None:
    layers = [Chain(first=Failing(), second=nn.Linear(8, 8)) for _ in range(10)]
    model = Bypassing(input_blocks=nn.ModuleList(nn.Sequential(layer.first, layer.second) for layer in layers))
    with trace_calls(model, discover(model)) as trace:
        layers[0].first.broken = True
        with pytest.raises(ArithmeticError):
            model(X)
        layers[0].first.broken = False
        model(X)
    assert trace.calls[:3] == ("input_blocks.0.0", "input_blocks.0.0", "input_blocks.0.1")


def test_a_hook_of_somebody_else_that_fails_does_not_upset_the_trace() -> None:
    model = Bypassing(input_blocks=nn.ModuleList(nn.Sequential(Block(), nn.Linear(8, 8)) for _ in range(10)))

    def refuse(*_: object) -> None:
        raise ArithmeticError("refused")

    handle = model.input_blocks[0][0].register_forward_pre_hook(refuse)
    with trace_calls(model, discover(model)) as trace:
        with pytest.raises(ArithmeticError):
            model(X)
        handle.remove()
        model(X)
    assert trace.counts["input_blocks.0.0"] == 2


def test_no_hook_is_left_when_the_block_is_left_by_an_exception() -> None:
    model = Chain(layers=blocks(3))
    with pytest.raises(ZeroDivisionError), trace_calls(model, discover(model)):
        raise ZeroDivisionError
    assert hook_count(model) == 0


def test_a_trace_changes_no_result() -> None:
    model = Chain(layers=blocks(3))
    x = torch.randn(2, 8)
    expected = model(x)
    with trace_calls(model, discover(model)):
        assert torch.equal(model(x), expected)


def test_the_meta_device_can_be_traced() -> None:
    model = Chain(layers=blocks(3)).to("meta")
    with trace_calls(model, discover(model)) as trace:
        model(X.to("meta"))
    assert trace.calls == ("layers.0", "layers.1", "layers.2")


def test_a_module_at_two_paths_is_one_unit_called_twice() -> None:
    block = Block()
    assert traced(Chain(layers=nn.ModuleList([block, block]))).counts == {"layers.0": 2}


def test_a_tree_from_names_can_be_traced() -> None:
    model = Chain(layers=blocks(3))
    tree = discover_names({name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()})
    with trace_calls(model, tree) as trace:
        model(X)
    assert trace.calls == ("layers.0", "layers.1", "layers.2")
    assert trace.tree.source == "names"


def test_a_tree_of_another_model_is_refused_before_anything_is_hooked() -> None:
    model, other = Chain(layers=blocks(3)), Chain(layers=blocks(5))
    message = r"unit 'layers\.3': the model Chain has no such module; trace the model that the tree was made of"
    with pytest.raises(UnknownUnitError, match=message), trace_calls(model, discover(other)):
        pass
    assert hook_count(model) == 0
