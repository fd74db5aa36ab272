"""The fixture `sim`: simulated devices for one test, and what must be true when the test is over."""

from __future__ import annotations

import gc
import os
import types
from collections.abc import Generator

import pytest

DEVICES = 4
CAPACITY_BYTES = 256 << 20
"""Small, so that a model which is not spread over the devices does not fit by luck."""

_PASSED = pytest.StashKey[bool]()
_BEFORE = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the simulated devices, so that `-m simdev` selects them."""
    for item in items:
        if "sim" in getattr(item, "fixturenames", ()):
            item.add_marker("simdev")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the body of the test passed."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Check what the test left behind once its other fixtures, which may hold tensors, are gone."""
    yield
    if _BEFORE in item.stash:
        getattr(item, "funcargs", {}).clear()  # pytest keeps the arguments of the test a little longer
        _check(item.stash[_BEFORE], passed=item.stash.get(_PASSED, False))


@pytest.fixture(scope="session")
def simulated_devices() -> types.ModuleType:
    """Install the devices once; skip where they cannot be had, or fail when SIMDEV_REQUIRED=1 says they must.

    They cannot be had without a compiler, or beside a real accelerator. A build that fails always fails.
    """
    import simdev

    try:
        simdev.install("sim", DEVICES, CAPACITY_BYTES)
    except (simdev.CompilerNotFoundError, simdev.InstallError) as error:
        if os.environ.get("SIMDEV_REQUIRED") == "1":
            pytest.fail(f"SIMDEV_REQUIRED=1, and there are no simulated devices\n{error}", pytrace=False)
        pytest.skip(str(error))
    simdev.set_visible(False)  # to tests without the fixture, the machine is what it was
    return simdev


@pytest.fixture
def sim(simulated_devices: types.ModuleType, request: pytest.FixtureRequest) -> types.ModuleType:
    """Return the module `simdev` with four fresh devices of 256 MiB that raise at a race, with a clock for each thread.

    After a test that passed, nothing may be left: no violation that was not taken by `sim.take_violations()`, no
    copy in a queue, and every device and the pinned memory back where they were.
    """
    simulated_devices.set_visible(True)
    _restore(simulated_devices)
    request.node.stash[_BEFORE] = _in_use(simulated_devices)
    gc.freeze()  # the collector then looks at what the test itself made, which takes next to no time
    return simulated_devices


def _check(before: dict[str, int], *, passed: bool) -> None:
    import simdev

    if _grown(simdev, before):
        gc.collect()
    gc.unfreeze()
    if _grown(simdev, before):
        gc.collect()  # a full one only here: with large libraries loaded it takes longer than most tests
    broken, queued, grown = simdev.take_violations(), simdev.counters().queued, _grown(simdev, before)
    _restore(simdev)
    simdev.set_visible(False)
    if not passed:
        return  # its traceback holds tensors, and it has said what is wrong
    listed = "\n".join(broken)
    assert not broken, f"the test left violations; sim.take_violations() takes those it expected:\n{listed}"
    assert queued == 0, f"the test left {queued} copies in a queue; synchronize, or free what they copy to"
    assert not grown, f"the test left memory in use, in bytes: {grown}"


def _restore(simdev: types.ModuleType) -> None:
    import torch

    simdev.config(lazy=True, race="raise", poison=True, dry=False, thread_clocks=True)
    simdev.count_ops(False)
    for index in range(DEVICES):
        torch.accelerator.synchronize(index)
        torch.accelerator.set_stream(torch.get_device_module("sim").default_stream(index))
        # What the traceback of an earlier, failed test holds does not count against this one.
        simdev.set_capacity(index, CAPACITY_BYTES + simdev.mem(index).used)
    simdev.set_pinned_capacity(None)
    torch.accelerator.set_device_index(0)
    simdev.reset()


def _in_use(simdev: types.ModuleType) -> dict[str, int]:
    places = {f"sim:{index}": simdev.mem(index).used for index in range(DEVICES)}
    return places | {"pinned host": simdev.pinned_bytes()}


def _grown(simdev: types.ModuleType, before: dict[str, int]) -> dict[str, int]:
    now = _in_use(simdev)
    return {place: now[place] - before[place] for place in before if now[place] > before[place]}
