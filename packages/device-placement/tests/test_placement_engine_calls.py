"""How units are called: twice, not at all, nested, by parts, with an exception; and what a forward may not do."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import pytest
import torch
from placement_models import (
    WIDTH,
    Block,
    Machine,
    Stack,
    emulated,
    example_input,
    machine_named,
    part,
    plan_for,
    stack,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from device_placement import HandleStateError, PlacedModel, StreamedWriteError, place


@pytest.fixture(params=["emulated-two-donors", "accelerator"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


def placed(model: nn.Module, machine: Machine, slots: int = 2, paths: list[str] | None = None) -> PlacedModel:
    return place(model, plan_for(model, machine, slots=slots, paths=paths), backend=machine.make_backend())


def test_the_steady_state_copies_each_unit_once_a_pass_and_is_never_surprised(machine: Machine) -> None:
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        machine.run(model, x)
        before = handle.stats()
        for _ in range(3):
            machine.run(model, x)
        after = handle.stats()
    donors = len(machine.donors)
    assert after.calls - before.calls == 3 * 5
    assert after.copies - before.copies == 3 * 5 * donors
    assert after.surprises == before.surprises == 0
    assert after.passes == 4
    total = sum(after.copied_bytes.values()) - sum(before.copied_bytes.values())
    assert total == 3 * sum(size for device, size in after.held_bytes.items() if device != machine.compute)


def test_units_that_all_fit_in_the_slots_are_copied_once(machine: Machine) -> None:
    model, x = stack(2), example_input()
    with placed(model, machine) as handle:
        for _ in range(4):
            machine.run(model, x)
        assert handle.stats().copies == 2 * len(machine.donors)


def test_a_unit_called_twice_a_pass_is_expected_twice(machine: Machine) -> None:
    model, x = stack(), example_input()
    model.order = [0, 1, 2, 1, 3, 4]
    expected = model(x)
    with placed(model, machine) as handle:
        for _ in range(3):
            machine.run(model, x)
        learnt = handle.stats().surprises
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        assert handle.stats().surprises == learnt


def test_a_unit_called_twice_in_a_row_is_copied_once(machine: Machine) -> None:
    model, x = stack(), example_input()
    model.order = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    expected = model(x)
    with placed(model, machine) as handle:
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        before = handle.stats().copies
        machine.run(model, x)
        assert handle.stats().copies - before == 5 * len(machine.donors)


@pytest.mark.parametrize("skipped", [[0], [2], [4], [1, 2], [0, 1, 2, 3]])
def test_skipped_units_do_not_stall_it(machine: Machine, skipped: list[int]) -> None:
    model, x = stack(), example_input()
    full = model(x)
    with placed(model, machine) as handle:
        assert torch.equal(machine.run(model, x), full)
        model.order = [index for index in range(5) if index not in skipped]
        partial = machine.run(model, x)
        for _ in range(3):
            assert torch.equal(machine.run(model, x), partial)
        learnt = handle.stats().surprises
        assert 0 < learnt <= 3
        machine.run(model, x)
        assert handle.stats().surprises == learnt
        model.order = list(range(5))
        assert torch.equal(machine.run(model, x), full)


def test_any_order_gives_the_right_result(machine: Machine) -> None:
    model, x = stack(), example_input()
    orders = [[4, 3, 2, 1, 0], [0, 4, 1, 3, 2], [2], [], [3, 3, 0, 1, 3], [0, 1, 2, 3, 4]]
    expected = []
    for model.order in orders:
        expected.append(model(x))
    with placed(model, machine):
        for _ in range(2):
            for model.order, wanted in zip(orders, expected, strict=True):
                assert torch.equal(machine.run(model, x), wanted)


class Fragile(Block):
    """Raises when asked to."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_middle_of_a_forward_leaves_it_usable(machine: Machine, kind: type[BaseException]) -> None:
    blocks = [Fragile() for _ in range(5)]
    model, x = stack(blocks), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        for broken in (0, 2, 4):
            blocks[broken].error = kind()
            with pytest.raises(kind):
                machine.run(model, x)
            blocks[broken].error = None
            for _ in range(2):
                assert torch.equal(machine.run(model, x), expected)
        homes = {name: value.device for name, value in model.blocks.state_dict().items()}
        assert machine.device not in homes.values() or machine.device.type == "cpu"
        assert handle.stats().uncalled == ()


def test_interrupts_without_the_model_being_called_use_up_no_slot(machine: Machine) -> None:
    blocks = [Fragile() for _ in range(5)]
    model, x = stack(blocks), example_input()
    with placed(model, machine):
        wanted = [machine.run(block, x) for block in blocks]
        for block in blocks:
            block.error = KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt):
                machine.run(block, x)
            block.error = None
        assert all(torch.equal(machine.run(block, x), result) for block, result in zip(blocks, wanted, strict=True))


class Recursive(Block):
    """Calls itself once more."""

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        y = super().forward(x)
        result: Tensor = self(y, again=False) if again else y
        return result


def test_a_unit_that_calls_itself_is_exchanged_once(machine: Machine) -> None:
    model, x = stack([Recursive() for _ in range(3)]), example_input()
    expected = model(x)
    with placed(model, machine):
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)


class Outer(nn.Module):
    """A unit with a unit inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.inner = Block()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x @ self.weight) @ self.weight
        return result


def test_an_interrupted_model_can_be_removed(machine: Machine) -> None:
    blocks = [Fragile() for _ in range(3)]
    model, x = stack(blocks), example_input()
    expected = model(x)
    blocks[1].error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), placed(model, machine):
        machine.run(model, x)
    blocks[1].error = None
    assert torch.equal(model.to("cpu")(x), expected)


def test_units_inside_units_hold_their_slots_together(machine: Machine) -> None:
    model, x = stack([Outer() for _ in range(3)]), example_input()
    expected = model(x)
    paths = [path for index in range(3) for path in (f"blocks.{index}.inner", f"blocks.{index}")]
    for slots in (2, 3):
        with placed(model, machine, slots=slots, paths=paths):
            for _ in range(3):
                assert torch.equal(machine.run(model, x), expected)


class Parts(nn.Sequential):
    """Like TimestepEmbedSequential: its parent calls what is inside, never this."""


class CallsParts(Stack):
    """Calls the parts of its blocks one by one."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            for inner in block:  # type: ignore[attr-defined]
                x = inner(x)
        result: Tensor = self.head(x)
        return result


def test_a_unit_that_is_never_called_is_streamed_for_its_parts(machine: Machine) -> None:
    torch.manual_seed(0)
    model = CallsParts([Parts(Block(), nn.ReLU(), Block()) for _ in range(4)]).eval().requires_grad_(False)
    x = example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        stats = handle.stats()
        assert (stats.calls, stats.uncalled) == (3 * 4 * 2, ())
        hooked = {path for path, module in model.named_modules() if module._forward_pre_hooks}
    # The two blocks of each unit, the unit itself in case it is called after all, and the model; nothing deeper.
    assert hooked == {"", *(f"blocks.{i}{part}" for i in range(4) for part in ("", ".0", ".2"))}


def test_hooks_on_parts_go_when_the_unit_is_called(machine: Machine) -> None:
    model, x = stack(2), example_input()
    with placed(model, machine):
        assert model.get_submodule("blocks.0.up")._forward_pre_hooks
        machine.run(model, x)
        assert not model.get_submodule("blocks.0.up")._forward_pre_hooks


class Attention(nn.Module):
    """nn.MultiheadAttention reads out_proj without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x[None], x[None], x[None], need_weights=False)[0][0]
        return x + result


@pytest.mark.parametrize("paths", ["blocks.{}", "blocks.{}.attention", "blocks.{}.attention.out_proj"])
def test_the_projection_that_multihead_attention_never_calls_is_brought_over(machine: Machine, paths: str) -> None:
    model, x = stack([Attention() for _ in range(3)]), example_input()
    expected = model(x)
    with placed(model, machine, paths=[paths.format(index) for index in range(3)]) as handle:
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        assert handle.stats().calls == 9


def test_a_fused_encoder_layer_takes_the_path_that_torch_takes_with_hooks(machine: Machine) -> None:
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True) for _ in range(3)]
    model, x = stack(layers), example_input()[None]
    with torch.no_grad():
        fused = model(x)
        handles = [layer.register_forward_hook(lambda module, args, result: None) for layer in layers]
        expected = model(x)
        for handle in handles:
            handle.remove()
    with placed(model, machine):
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
    torch.testing.assert_close(expected, fused)


class ReadsAnother(Stack):
    """Reads the weight of a block that it does not call."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x + part(self, "blocks.4.norm").bias)
        return result


def test_a_unit_that_is_never_called_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    machine = emulated()
    torch.manual_seed(0)
    model, x = ReadsAnother(5).eval(), example_input()
    model.order = [0, 1, 2, 3]
    with placed(model, machine) as handle, caplog.at_level(logging.WARNING):
        machine.run(model, x)
        assert handle.stats().uncalled == ("blocks.4",)
        assert not caplog.records
        machine.run(model, x)
    assert "1 units with streamed tensors were not called in the first forward (blocks.4)" in caplog.text


class Pair(NamedTuple):
    """Two tensors under names."""

    first: Tensor
    second: Tensor


class Lends(nn.Module):
    """Returns its weights, or parts of them, in several wrappings."""

    def __init__(self, wrap: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, WIDTH))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        part = self.weight[1:3]
        return {
            "parameter": self.weight,
            "view": part,
            "tuple": (x, part),
            "list": [part, [x, part]],
            "named": Pair(x, part),
        }[self.wrap]


@pytest.mark.parametrize("wrap", ["parameter", "view", "tuple", "list", "named"])
def test_a_result_that_is_a_streamed_weight_outlives_the_slot(machine: Machine, wrap: str) -> None:
    class Lent(Stack):
        def forward(self, x: Tensor) -> Any:
            return [block(x) for block in self.blocks]

    torch.manual_seed(0)
    model = Lent([Lends(wrap) for _ in range(5)]).eval().requires_grad_(False)
    x = example_input()
    expected = model(x)
    with placed(model, machine), torch.no_grad():
        result = model(x.to(machine.device))
        torch.testing.assert_close(tree_map(lambda tensor: tensor.to("cpu"), result), expected, rtol=0, atol=0)
        assert [type(item) for item in result] == [type(item) for item in expected] or wrap == "parameter"


class Writes(Block):
    """Counts its calls in a buffer."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return super().forward(x)


def counts(model: nn.Module) -> list[float]:
    """What the blocks counted."""
    return [float(part(model, f"blocks.{index}").count) for index in range(3)]


def test_a_forward_that_writes_to_a_streamed_tensor_is_refused(machine: Machine) -> None:
    model, x = stack([Writes() for _ in range(3)]), example_input()
    with placed(model, machine):
        with pytest.raises(StreamedWriteError, match=r"'blocks\.0' wrote .* home on the compute device") as caught:
            machine.run(model, x)
        assert caught.value.unit == "blocks.0"
        assert "blocks.0.count" in caught.value.names
        assert counts(model) == [0, 0, 0]


def test_a_resident_buffer_may_be_written(machine: Machine) -> None:
    model, x = stack([Writes() for _ in range(3)]), example_input()
    expected = model(x)
    plan = plan_for(model, machine, home=lambda name: None if "count" in name else machine.donors[0])
    with place(model, plan, backend=machine.make_backend()):
        for _ in range(2):
            assert torch.equal(machine.run(model, x), expected)
    assert counts(model) == [3, 3, 3]


class Keeps(Block):
    """Replaces one of its buffers by another tensor."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x + self.last)
        self.last = self.last.cpu() + 1
        return y


def test_a_buffer_that_a_forward_replaces_moves_into_the_home() -> None:
    machine = emulated()
    model, x = stack([Keeps() for _ in range(3)]), example_input()
    unplaced = stack([Keeps() for _ in range(3)])
    with placed(model, machine):
        for _ in range(3):
            assert torch.equal(machine.run(model, x), unplaced(x))


def test_the_hooks_of_others_see_the_weights_of_the_forward(machine: Machine) -> None:
    model, x = stack(2), example_input()
    seen: list[torch.device] = []
    for path in ("blocks.0", "blocks.1"):
        part(model, path).register_forward_pre_hook(lambda module, args: seen.append(module.up.weight.device))
    with placed(model, machine):
        machine.run(model, x)
    assert seen == [machine.device] * 2


def test_more_nesting_than_slots_is_explained_and_leaves_it_usable() -> None:
    machine = emulated()
    model, x = stack(3), example_input()
    expected = model(x)

    def calls_another(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        model.blocks[1](x)

    with placed(model, machine, slots=1):
        machine.run(model, x)
        handle = part(model, "blocks.0.up").register_forward_pre_hook(calls_another)
        with pytest.raises(HandleStateError, match=r"'blocks\.1' is called inside 1 other streamed units"):
            machine.run(model, x)
        handle.remove()
        assert torch.equal(machine.run(model, x), expected)
