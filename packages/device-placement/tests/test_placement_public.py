"""The public face: names do not disappear by accident, each is explained, and importing does nothing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import device_placement

SOURCES = sorted(Path(device_placement.__file__).parent.glob("*.py"))

PUBLIC = [
    "AcceleratorBackend",
    "Backend",
    "Bound",
    "BudgetTooSmallError",
    "Device",
    "DeviceUnavailableError",
    "DevicesFullError",
    "EmulatedBackend",
    "Estimate",
    "Finding",
    "HandleInvalidatedError",
    "HandleStateError",
    "Hardware",
    "InvalidHardwareError",
    "InvalidJsonError",
    "InvalidPlanError",
    "Link",
    "PeerCopyError",
    "PlacedModel",
    "PlacementError",
    "PlacementPlan",
    "PlacementStats",
    "PlanMismatchError",
    "Policy",
    "SameDeviceBackend",
    "Span",
    "StreamedWriteError",
    "TensorHome",
    "UnitPlacement",
    "UnknownDeviceError",
    "UnknownLinkError",
    "diagnose",
    "place",
    "plan",
    "predict",
    "probe",
    "render_svg",
    "render_table",
    "render_timeline_svg",
]


def test_the_public_names_are_these() -> None:
    assert sorted(device_placement.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    thing = getattr(device_placement, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing)


def test_only_the_adapter_says_torch_cuda() -> None:
    assert [file.name for file in SOURCES if re.search(r"torch\.cuda\b|from torch import cuda", code_of(file))] == [
        "_cuda.py"
    ]


def code_of(file: Path) -> str:
    """The file without what its comments and docstrings say in backquotes."""
    return re.sub(r"`[^`\n]+`", "", file.read_text(encoding="utf-8"))


def test_importing_touches_no_device_and_says_nothing() -> None:
    script = "import device_placement, torch; assert not torch.cuda.is_initialized()"
    answer = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_no_file_has_grown_beyond_one_idea() -> None:
    assert [file.name for file in SOURCES if len(file.read_text(encoding="utf-8").splitlines()) > 400] == []
