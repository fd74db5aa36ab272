"""Laws of `torchspan demo`: it does the main job, says what came out, and its exit code tells when that was wrong."""

from __future__ import annotations

import contextlib
import io
import math
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from alloc_spec import parse
from block_discovery import discover_names
from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode
from comfy_nodes.cli.demo import _demo
from comfy_nodes.cli.demo._run import Run, largest_difference, one_core_for_the_link
from device_placement import (
    Device,
    Estimate,
    Hardware,
    Link,
    PlacedModel,
    PlacementPlan,
    PlacementStats,
    place,
    plan,
)

SMALL = ["--blocks", "8", "--steps", "3", "--workers", "0"]


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    out: str
    folder: Path

    def number(self, pattern: str) -> float:
        found = re.search(pattern, self.out)
        assert found, f"{pattern} in {self.out}"
        return float(found[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run of the demo on a small model, looked at by many tests."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["demo", *SMALL, "--out", str(folder)])
    return Finished(code, out.getvalue(), folder)


def test_the_demo_succeeds_with_the_same_output_as_the_unplaced_model(finished: Finished) -> None:
    assert finished.code == ExitCode.OK
    assert finished.out.count("output difference to the unplaced model: 0.0\n") == 1


def test_it_goes_the_whole_way_in_order(finished: Finished) -> None:
    titles = re.findall(r"^== (\d)\. .* ==$", finished.out, flags=re.MULTILINE)
    assert titles == [str(number) for number in range(1, 10)]
    for words in ("8 blocks", "no weight was read", "emulated:0 holds 25 % of the model", "Final assignment"):
        assert words in finished.out


def test_every_step_leaves_a_dot(finished: Finished) -> None:
    for title in ("unplaced ", "placed   ", "taken off"):
        assert re.search(rf"^{title} \.\.\. \d", finished.out, flags=re.MULTILINE)


def test_prediction_and_measurement_stand_side_by_side(finished: Finished) -> None:
    row = re.search(r"^a pass +[\d.]+ m?s +[\d.]+ m?s +[+-][\d.]+ %$", finished.out, flags=re.MULTILINE)
    assert row, finished.out


def test_every_policy_is_predicted(finished: Finished) -> None:
    for policy in ("stripe", "interleave", "contiguous", "legacy_tail"):
        assert re.search(rf"^{policy} ", finished.out, flags=re.MULTILINE)


def test_the_plan_that_it_leaves_is_the_one_it_ran(finished: Finished) -> None:
    placement = PlacementPlan.from_json((finished.folder / "plan.json").read_text())
    assert placement.compute == "emulated:0"
    assert placement.donors == ("cpu",)
    assert 0.2 < placement.bytes_on("emulated:0") / placement.size_bytes <= 0.25
    copied = finished.number(r"copies brought (\d+) MiB in 3 steps") * 2**20
    assert copied >= 3 * placement.streamed_bytes * 0.99


def test_the_pictures_are_svg_and_their_paths_are_printed(finished: Finished) -> None:
    for name in ("placement.svg", "timeline.svg"):
        path = finished.folder / name
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
        assert f"\n{path}\n" in finished.out


def test_the_model_is_gone_afterwards(finished: Finished) -> None:
    assert {path.name for path in finished.folder.iterdir()} == {"plan.json", "placement.svg", "timeline.svg"}


def test_without_a_folder_it_makes_a_temporary_one_and_keeps_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["demo", *SMALL, "--no-svg", "--keep-model", "--link", "100", "--policy", "interleave"]) == ExitCode.OK
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("torchspan-demo-")
    assert {path.name for path in folder.iterdir()} == {"plan.json", "demo.safetensors"}
    assert "an emulated link of 100.00 GB/s" in capsys.readouterr().out


def test_a_wrong_output_is_told_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A streamed copy that brings a wrong byte must not pass."""

    def place_and_damage(model: torch.nn.Module, plan: PlacementPlan, **options: Any) -> PlacedModel:
        handle = place(model, plan, **options)
        model.get_parameter("blocks.3.qkv.weight").add_(1e-3)
        return handle

    monkeypatch.setattr(_demo, "place", place_and_damage)
    assert main(["demo", *SMALL, "--out", str(tmp_path), "--no-svg"]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert "the placed model computed something else" in captured.err
    assert "output difference to the unplaced model: 0.0\n" not in captured.out


def test_a_policy_that_does_not_fit_is_said_to_and_the_others_are_predicted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Slots for whole blocks are twice those for halves of blocks, and there is room for the latter alone."""
    tree = discover_names(
        {f"blocks.{index}.{part}.weight": ((256, 256), "float32") for index in range(8) for part in "abcd"}
    )
    room = tree.size_bytes * 11 // 16
    machine = Hardware(
        compute=_demo.COMPUTE,
        devices=(
            Device(name=_demo.COMPUTE, total_bytes=room, free_bytes=room),
            Device(name=_demo.DONOR, total_bytes=1 << 30, free_bytes=1 << 30),
        ),
        links=(Link(source=_demo.DONOR, target=_demo.COMPUTE, gb_per_second=1.0),),
    )
    spec = parse(f"{_demo.COMPUTE},50%;{_demo.DONOR},*")
    placement = plan(tree, spec, machine, slots=2)
    estimate = _demo._predict(tree, spec, machine, placement, 0.01)
    assert estimate.seconds is not None and estimate.seconds >= 0.01
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines() if row}
    assert "this plan" in rows["stripe"] and "does not fit" not in rows["stripe"]
    for policy in ("interleave", "contiguous"):
        assert rows[policy].endswith("does not fit")


def timed(pass_seconds: float) -> Run:
    return Run(latent=torch.zeros(1), pass_seconds=(pass_seconds,))


@pytest.mark.parametrize(("after_seconds", "is_busy"), [(1.0, False), (1.04, False), (1.2, True), (0.5, True)])
def test_a_busy_machine_is_said_to_be_one(
    after_seconds: float, is_busy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate = Estimate(
        compute="emulated:0", seconds=1.1, compute_seconds=1.0, transfer_seconds=1.0, bound="buffer", peak_bytes={}
    )
    stats = PlacementStats(
        passes=1, calls=1, copies=4, copied_bytes={"cpu": 2**20}, surprises=0, refetches=0, waits=0, wait_seconds=0.0,
        hook_seconds=0.0, held_bytes={"cpu": 2**20}, pinned_bytes=0, uncalled=(),
    )  # fmt: skip
    _demo._report(estimate, timed(1.0), timed(1.25), timed(after_seconds), stats)
    out = capsys.readouterr().out
    assert ("the machine is busy" in out) is is_busy
    assert re.search(r"^a pass +1\.1 s +1\.25 s +-12\.0 %$", out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--spec", "emulated:0=1mb"], ExitCode.USAGE, "did you mean"),
        (["--spec", ""], ExitCode.USAGE, "expected a device name"),
        (["--spec", "cuda:0,25%;cpu,*"], ExitCode.REFUSED, 'no device "cuda:0" here'),
        (["--spec", "emulated:0,90%;cpu,*"], ExitCode.REFUSED, "are missing"),
        (["--blocks", "1"], ExitCode.REFUSED, "too small"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    words: list[str], code: ExitCode, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *SMALL, "--out", str(tmp_path), *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "unplaced" not in captured.out
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_without_anything_to_keep_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["demo", *SMALL, "--spec", "emulated:0,90%;cpu,*"]) == ExitCode.REFUSED
    assert "are missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [[], ["--gguf"]], ids=["safetensors", "gguf"])
def test_a_model_that_cannot_be_written_is_refused_by_name(
    kind: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind:
        pytest.importorskip("gguf")
    occupied = tmp_path / f"demo.{'gguf' if kind else 'safetensors'}"
    occupied.mkdir()
    assert main(["demo", *SMALL, *kind, "--out", str(tmp_path)]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert str(occupied) in captured.err
    assert occupied.is_dir()
    assert "unplaced" not in captured.out


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert main(["demo", *SMALL, "--out", str(occupied / "below")]) == ExitCode.REFUSED
    assert str(occupied) in capsys.readouterr().err


def test_the_first_pass_does_not_count_where_there_are_more() -> None:
    latent = torch.zeros(1)
    assert Run(latent=latent, pass_seconds=(9.0, 1.0, 3.0, 2.0)).steady_seconds == 2.0
    assert Run(latent=latent, pass_seconds=(9.0,)).steady_seconds == 9.0


def test_differences_are_absolute_and_nothing_hides_in_nan() -> None:
    zero = torch.zeros(3)
    assert largest_difference(zero, zero) == 0.0
    assert largest_difference(zero, torch.tensor([0.0, -2.0, 1.0])) == 2.0
    assert math.isnan(largest_difference(zero, torch.tensor([0.0, math.nan, 0.0])))


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_the_number_of_threads_comes_back(threads: int) -> None:
    torch.set_num_threads(2)
    with contextlib.suppress(KeyError), one_core_for_the_link():
        assert torch.get_num_threads() >= 1
        raise KeyError
    assert torch.get_num_threads() == 2
