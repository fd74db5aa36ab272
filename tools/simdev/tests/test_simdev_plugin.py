"""The fixture `sim`: small tests are run by a pytest of their own, and must end as their comment says."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

import simdev.pytest_plugin

INNER = """
import gc, pytest, torch

held = []

def race():
    a, side = torch.zeros(8, device="sim:0"), torch.Stream(device="sim:0")
    with side:
        a + 1

@pytest.fixture
def model():
    return torch.nn.Linear(4, 4)

@pytest.fixture(scope="module")
def slot(simulated_devices):
    held.append(torch.zeros(8, device="sim:0"))
    yield held[-1]
    held.clear()

def test_holds_memory(sim):
    held.append(torch.ones(1000, device="sim:1"))

def test_after_one_that_held_memory(sim):
    assert sim.mem(1).used == 4096

def test_frees_what_another_held(sim):
    held.clear()

def test_holds_pinned_memory(sim):
    held.append(torch.ones(1000).pin_memory())

def test_leaves_garbage_in_a_cycle(sim):
    held.clear()
    gc.disable()
    cycle = [torch.ones(1000, device="sim:1")]
    cycle.append(cycle)

def test_collects_garbage_again():
    gc.enable()

def test_moves_an_argument_made_before(model, sim):
    model.to("sim:0")

def test_moves_an_argument_made_after(sim, model):
    model.to("sim:0")

def test_swallows_a_race(sim):
    try: race()
    except RuntimeError: pass

def test_takes_a_race(sim):
    with pytest.raises(RuntimeError, match="simdev race"): race()
    assert sim.take_violations()

def test_commits_a_race(sim):
    race()

def test_forgets_a_copy(slot, sim):
    slot.copy_(torch.ones(8).pin_memory(), non_blocking=True)

def test_waits_for_a_copy(slot, sim):
    slot.copy_(torch.ones(8).pin_memory(), non_blocking=True)
    torch.accelerator.synchronize(0)

def test_changes_every_setting(sim):
    sim.config(race="off", lazy=False, poison=False, dry=True, thread_clocks=False)
    sim.set_capacity(1, 5)
    sim.set_pinned_capacity(5)
    sim.count_ops()
    torch.accelerator.set_device_index(3)
    torch.accelerator.set_stream(torch.Stream(device="sim:3"))
    torch.ones(4).to("sim:2")

def test_sees_no_change(sim):
    assert sim.links() == () and sim.mem(1).capacity == 256 << 20
    assert torch.accelerator.current_device_index() == 0
    assert torch.accelerator.current_stream(3).stream_id == 0
    assert torch.empty(4, device="sim:1").isnan().all()
    assert torch.ones(4, device="sim:2").sum().item() == 4
    assert torch.ones(4).pin_memory().is_pinned()
    assert sim.ops() == {}
    with pytest.raises(RuntimeError, match="simdev race"): race()
    sim.take_violations()

def test_fails_with_memory_in_its_frame(sim):
    a = torch.ones(250 << 20, dtype=torch.uint8, device="sim:1")
    assert a is None

def test_has_its_full_capacity_after_a_failure(sim):
    torch.ones(250 << 20, dtype=torch.uint8, device="sim:1")

def test_uses_no_device():
    assert not torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator(check_available=True) is None

def test_finds_the_devices(sim):
    assert str(torch.accelerator.current_accelerator(check_available=True)) == "sim"
"""

README_HEAD = """
import torch

def run_without_waiting():
    a, side = torch.zeros(8, device="sim:0"), torch.Stream(device="sim:0")
    with side:
        a + 1
    a.record_stream(side)

"""

PASSED = ["setup passed", "call passed", "teardown passed"]
LEFT_SOMETHING = ["setup passed", "call passed", "teardown failed"]
FAILED = ["setup passed", "call failed", "teardown passed"]


class Outcomes:
    """Notes how each phase of each test ended, what was said, and the marks of each test."""

    def __init__(self) -> None:
        self.phases: dict[str, list[str]] = {}
        self.said: dict[str, str] = {}
        self.marks: dict[str, set[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.marks = {item.name: {mark.name for mark in item.iter_markers()} for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::")[-1]
        self.phases.setdefault(name, []).append(f"{report.when} {report.outcome}")
        self.said[name] = self.said.get(name, "") + str(report.longrepr or "")


def run(file: Path, text: str) -> Outcomes:
    """Run a test file with this plugin and no other."""
    file.write_text(text)
    outcomes = Outcomes()
    arguments = [str(file), "-q", "-c", "/dev/null", "--rootdir", str(file.parent), "-p", "no:cacheprovider"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytest.main([*arguments, "--import-mode=importlib"], plugins=[simdev.pytest_plugin, outcomes])
    return outcomes


@pytest.fixture(scope="module")
def inner(simulated_devices: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return run(tmp_path_factory.mktemp("plugin") / "test_simdev_inner.py", INNER)


@pytest.mark.simdev
@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("test_holds_memory", LEFT_SOMETHING),
        ("test_after_one_that_held_memory", PASSED),
        ("test_frees_what_another_held", PASSED),
        ("test_holds_pinned_memory", LEFT_SOMETHING),
        ("test_leaves_garbage_in_a_cycle", PASSED),
        ("test_collects_garbage_again", PASSED),
        ("test_moves_an_argument_made_before", PASSED),
        ("test_moves_an_argument_made_after", PASSED),
        ("test_swallows_a_race", LEFT_SOMETHING),
        ("test_takes_a_race", PASSED),
        ("test_commits_a_race", FAILED),
        ("test_forgets_a_copy", LEFT_SOMETHING),
        ("test_waits_for_a_copy", PASSED),
        ("test_changes_every_setting", PASSED),
        ("test_sees_no_change", PASSED),
        ("test_fails_with_memory_in_its_frame", FAILED),
        ("test_has_its_full_capacity_after_a_failure", PASSED),
        ("test_uses_no_device", PASSED),
        ("test_finds_the_devices", PASSED),
    ],
)
def test_a_test_ends_as_it_must(inner: Outcomes, name: str, phases: list[str]) -> None:
    assert inner.phases[name] == phases, inner.said[name]


@pytest.mark.simdev
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_holds_memory", "left memory in use, in bytes: {'sim:1': 4096}"),
        ("test_holds_pinned_memory", "left memory in use, in bytes: {'pinned host': 4096}"),
        ("test_swallows_a_race", "sim.take_violations() takes those it expected:\n"),
        ("test_commits_a_race", "simdev race: aten::add"),
        ("test_forgets_a_copy", "left 1 copies in a queue"),
    ],
)
def test_a_complaint_names_what_was_left(inner: Outcomes, name: str, words: str) -> None:
    assert words in inner.said[name]


@pytest.mark.simdev
def test_tests_that_use_the_fixture_are_marked(inner: Outcomes) -> None:
    unmarked = {name for name, marks in inner.marks.items() if "simdev" not in marks}
    assert unmarked == {"test_uses_no_device", "test_collects_garbage_again"}


@pytest.mark.simdev
@pytest.mark.usefixtures("simulated_devices")
def test_the_examples_of_the_readme_pass(tmp_path: Path) -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    outcomes = run(tmp_path / "test_simdev_readme.py", README_HEAD + "\n\n".join(examples))
    names = ["test_the_weight_arrives", "test_a_missing_wait_is_caught"]
    assert outcomes.phases == dict.fromkeys(names, PASSED), outcomes.said


NO_COMPILER = simdev.CompilerNotFoundError("C++ compiler 'g++'", "it is not there", "install it")
REAL_GPU = simdev.InstallError("simulated devices", "this process sees a real accelerator", "hide it")
BROKEN = simdev.BuildError("simdev.cpp", "g++ ended with status 1", "read on", compiler_output="no_such_name")


@pytest.mark.parametrize(
    ("error", "required", "outcome"),
    [
        (NO_COMPILER, "", "setup skipped"),
        (NO_COMPILER, "1", "setup failed"),
        (REAL_GPU, "", "setup skipped"),
        (REAL_GPU, "1", "setup failed"),
        (BROKEN, "", "setup failed"),
    ],
    ids=[
        "no compiler",
        "no compiler where it is required",
        "a GPU",
        "a GPU where simdev is required",
        "a broken build",
    ],
)
def test_without_devices_tests_are_skipped_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: simdev.SimdevError, required: str, outcome: str
) -> None:
    def cannot(*_: object) -> None:
        raise error

    monkeypatch.setenv("SIMDEV_REQUIRED", required)
    monkeypatch.setattr(simdev, "install", cannot, raising=False)
    outcomes = run(tmp_path / f"test_simdev_inner_{tmp_path.name}.py", "def test_it(sim): pass")
    assert outcomes.phases == {"test_it": [outcome, "teardown passed"]}
    assert error.remedy in outcomes.said["test_it"]
