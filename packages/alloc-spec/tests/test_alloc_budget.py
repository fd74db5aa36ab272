"""Budgets, as `resolve` makes them and as people build them by hand."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from alloc_spec import AllocValueError, Budget, DeviceMemory, parse, parse_wire, resolve

GIB = 2**30


def sample(**changes: Any) -> Budget:
    values: dict[str, Any] = {
        "order": ("cuda:1", "cuda:0", "cpu"),
        "amounts": {"cpu": 3 * GIB, "cuda:0": GIB, "cuda:1": 4 * GIB},
        "compute_device": "cuda:0",
        "warnings": ("cpu is slow",),
        "auto_devices": frozenset({"cuda:1"}),
        "rest_device": "cpu",
    }
    return Budget(**(values | changes))


def test_a_budget_answers_by_device_and_in_order() -> None:
    budget = sample()
    assert budget.model_bytes == 8 * GIB
    assert budget.bytes_for("cuda:1") == 4 * GIB
    assert budget.bytes_for("xpu:0") == 0
    assert list(budget.as_dict().items()) == [("cuda:1", 4 * GIB), ("cuda:0", GIB), ("cpu", 3 * GIB)]


def test_order_and_amounts_are_enough() -> None:
    budget = Budget(order=("cpu",), amounts={"cpu": 5})
    assert (budget.compute_device, budget.warnings, budget.auto_devices) == (None, (), frozenset())
    assert budget.rest_device is None


def test_lists_and_sets_become_what_cannot_change() -> None:
    budget = Budget(order=["cpu"], amounts={"cpu": 5}, warnings=["w"], auto_devices={"cpu"})  # type: ignore[arg-type]
    assert budget == Budget(order=("cpu",), amounts={"cpu": 5}, warnings=("w",), auto_devices=frozenset({"cpu"}))


def test_a_budget_cannot_be_changed_from_outside() -> None:
    amounts = {"cpu": 5}
    budget = Budget(order=("cpu",), amounts=amounts)
    amounts["cpu"] = 6
    budget.as_dict()["cpu"] = 7
    assert budget.bytes_for("cpu") == 5
    with pytest.raises(TypeError):
        budget.amounts["cpu"] = 8  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.order = ()  # type: ignore[misc]


def test_equal_budgets_are_equal_whatever_the_order_of_the_mapping() -> None:
    turned = sample(amounts={"cuda:1": 4 * GIB, "cuda:0": GIB, "cpu": 3 * GIB})
    assert turned == sample()
    assert hash(turned) == hash(sample())
    assert sample(amounts={"cuda:1": 3 * GIB, "cuda:0": GIB, "cpu": 4 * GIB}) != sample()
    assert sample(order=("cpu", "cuda:0", "cuda:1")) != sample()


def test_a_budget_survives_pickling_copying_and_replacing() -> None:
    assert pickle.loads(pickle.dumps(sample())) == copy.deepcopy(sample()) == copy.copy(sample()) == sample()
    assert dataclasses.replace(sample(), compute_device="cpu").compute_device == "cpu"


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"order": ("cpu", "cpu")}, "order", "name each device once"),
        ({"order": ("cuda:1", "cuda:0")}, "amounts", "give an amount for each of cuda:1, cuda:0, and for no other"),
        ({"order": ("cuda:1", "cuda:0", "cpu", "mps")}, "amounts", "for no other"),
        ({"order": ()}, "amounts", "give an amount for each of no devices"),
        ({"order": ("CUDA:1", "cuda:0", "cpu")}, "order", "a device name is lower-case"),
        ({"amounts": {"cuda:1": -1, "cuda:0": 1, "cpu": 1}}, "amounts['cuda:1']", "pass 0 to"),
        ({"amounts": {"cuda:1": 1, "cuda:0": 1.0, "cpu": 1}}, "amounts['cuda:0']", "bytes are whole numbers"),
        ({"amounts": {"cuda:1": 1, "cuda:0": 1, "cpu": True}}, "amounts['cpu']", "bytes are whole numbers"),
        ({"compute_device": "CUDA 0"}, "compute_device", "a device name is lower-case"),
        ({"auto_devices": frozenset({"mps"})}, "auto_devices", "name only devices of `order`"),
        ({"rest_device": "mps"}, "rest_device", "name a device of `order`"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(changes: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(AllocValueError, match=reason) as caught:
        sample(**changes)
    assert caught.value.field == field


def test_the_compute_device_need_not_hold_anything() -> None:
    assert Budget(order=("cpu",), amounts={"cpu": 5}, compute_device="cuda:0").bytes_for("cuda:0") == 0


def test_an_empty_budget_is_the_budget_of_nothing() -> None:
    empty = Budget(order=(), amounts={})
    assert empty.model_bytes == 0
    assert empty.explain() == "model of 0 bytes (0 bytes), in order along the model:"


def test_the_explanation_is_a_table_in_order_with_the_warnings() -> None:
    assert sample().explain().splitlines() == [
        "model of 8 GiB (8589934592 bytes), in order along the model:",
        "  cuda:1  4 GiB   50.0 %  4294967296 bytes  (auto)",
        "  cuda:0  1 GiB   12.5 %  1073741824 bytes  (computes)",
        "  cpu     3 GiB   37.5 %  3221225472 bytes",
        "warning: cpu is slow",
    ]


def test_the_columns_of_the_explanation_stay_in_line() -> None:
    wide = Budget(order=("privateuseone:10", "cpu"), amounts={"privateuseone:10": 3 * 2**40 + 2**34, "cpu": 7})
    first, second = (line for line in wide.explain().splitlines()[1:])
    assert first.index(" %") == second.index(" %")
    assert first.index(" bytes", 40) == second.index(" bytes", 40)


def test_a_resolved_budget_explains_what_was_auto_and_where_it_computes() -> None:
    devices = {name: DeviceMemory(total=16 * GIB, free=16 * GIB) for name in ("cuda:0", "cpu")}
    text = resolve(parse("cuda:0,auto;cpu,*#cuda:0"), model_bytes=10 * GIB, devices=devices).explain()
    assert "(computes, auto)" in text


@pytest.mark.parametrize(
    ("text", "rest_device"),
    [
        ("cuda:0,2gb;cpu,*", "cpu"),
        ("cuda:0,*;cpu,2gb", "cuda:0"),
        ("cuda:0,25%;cpu,*", "cpu"),
        ("cuda:0,2gb", "cpu"),
        ("cpu,2gb#cuda:0", "cuda:0"),
        ("cuda:0,10gb", None),
        ("cpu,10gb#cuda:0", None),
        ("cuda:0,1%;cpu,3%", None),
        ("cuda:0,0.5;cpu,0.5", None),
        ("cuda:0,auto;cpu,8gb", None),
        ("#cuda:0;4;cpu", "cuda:0"),
    ],
)
def test_a_resolved_budget_says_who_takes_the_rest(text: str, rest_device: str | None) -> None:
    devices = {name: DeviceMemory(total=16 * GIB, free=16 * GIB) for name in ("cuda:0", "cpu")}
    budget = resolve(parse_wire(text) if "#" in text else parse(text), model_bytes=10 * GIB, devices=devices)
    assert budget.rest_device == rest_device
