"""Every error says what it is about, carries its data, and crosses a process border unchanged."""

from __future__ import annotations

import pickle

import pytest

import device_placement
from alloc_spec import human_size
from device_placement import (
    BudgetTooSmallError,
    DevicesFullError,
    DeviceUnavailableError,
    HandleInvalidatedError,
    HandleStateError,
    InvalidHardwareError,
    InvalidJsonError,
    InvalidPlanError,
    PeerCopyError,
    PlacementError,
    PlanMismatchError,
    StreamedWriteError,
    UnknownDeviceError,
    UnknownLinkError,
)

ERRORS: list[PlacementError] = [
    BudgetTooSmallError(device="cuda:0", what="the slots", needed_bytes=3, available_bytes=1, remedy="free memory"),
    BudgetTooSmallError(
        device="cuda:0", what="it", needed_bytes=3, available_bytes=1, remedy="use less", suggestion="cuda:0,auto;cpu,*"
    ),
    DeviceUnavailableError("cuda:7", "there are 2", "name one of these"),
    DevicesFullError("the share of 'a'", 5, {"cpu": "out of memory"}, "add a donor"),
    HandleInvalidatedError(["a.weight"], "moved"),
    HandleStateError("the placement was removed"),
    InvalidHardwareError("no name"),
    InvalidJsonError("units[0].path", "expected str, got 1"),
    InvalidPlanError("0 slots"),
    PeerCopyError("cuda:1", "cuda:0"),
    PlanMismatchError("tied tensors have two homes", ["a", "b"], "charge them once"),
    StreamedWriteError("blocks.0", ["blocks.0.bias"]),
    UnknownDeviceError("cuda:7", ["cuda:0", "cpu"]),
    UnknownLinkError("cuda:7", "cuda:0", [("cpu", "cuda:0")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: PlacementError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_public_error_is_in_the_list_above() -> None:
    public = {name for name in device_placement.__all__ if name.endswith("Error")} - {"PlacementError"}
    assert {type(error).__name__ for error in ERRORS} == public


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_data_is_named_in_the_message(error: PlacementError) -> None:
    for value in vars(error).values():
        text = human_size(value) if isinstance(value, int) else value
        if isinstance(text, str):
            assert text.lower() in str(error).lower()


def test_many_names_are_cut_short_and_counted() -> None:
    names = [f"blocks.{index}.weight" for index in range(7)]
    message = str(PlanMismatchError("tensors have no home", names, "make the plan from this model"))
    assert "'blocks.4.weight' and 2 more; make" in message
    assert "blocks.5" not in message


def test_an_allocation_that_fits_stands_on_a_line_of_its_own() -> None:
    without, with_one = ERRORS[:2]
    assert "this would fit" not in str(without)
    assert str(with_one).splitlines()[-1] == 'this would fit: "cuda:0,auto;cpu,*"'
