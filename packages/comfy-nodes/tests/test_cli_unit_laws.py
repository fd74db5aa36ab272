"""Laws between the command's words: two ways to say one thing, and what must grow or stay when a number grows."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_testing import transformer_shapes, write_header
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import alloc_spec
from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode
from device_placement import Estimate, Hardware, PlacementPlan, plan, predict

MACHINE = ("--device", "cuda:0=24gb", "--device", "cuda:1=8gb", "--device", "cpu=64gb")
LINKS = ("--link", "cpu=25", "--link", "cuda:1=10")
BLOCKS, WIDTH = 6, 1024
quick = settings(deadline=None, max_examples=10)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 6 blocks, of which the file has the header alone."""
    path = tmp_path_factory.mktemp("laws") / "model.safetensors"
    write_header(path, transformer_shapes(BLOCKS, WIDTH))
    return path


def run(*words: str | Path) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main([*map(str, words)])
    return code, out.getvalue()


def document(file: Path, *words: str) -> dict[str, Any]:
    code, out = run("plan", file, *MACHINE, *LINKS, *words, "--json")
    assume(code == ExitCode.OK)
    found: dict[str, Any] = json.loads(out)
    return found


def plan_in(found: dict[str, Any]) -> PlacementPlan:
    return PlacementPlan.from_json(json.dumps(found["plan"]))


moved_gb = st.floats(0.002, 0.13).map(lambda number: round(number, 4))
donors = st.sampled_from(["cpu", "cuda:1", "cuda:1,cpu", "cpu,cuda:1"])
specs = st.one_of(
    st.integers(5, 95).map(lambda share: f"cuda:0,{share}%;cpu,*"),
    st.integers(1, 120).map(lambda size: f"cuda:1,{size}mb;cuda:0,*"),
    st.tuples(st.integers(1, 60), st.integers(1, 60)).map(
        lambda sizes: f"cuda:0,{sizes[0]}mb;cuda:1,{sizes[1]}mb;cpu,*"
    ),
    st.just("cuda:0,auto;cpu,*"),
)


@quick
@given(moved=moved_gb, donor=donors)
def test_the_three_controls_are_the_wire_string(file: Path, moved: float, donor: str) -> None:
    controls = document(file, "--compute", "cuda:0", "--virtual-ram-gb", str(moved), "--donor", donor)
    assert plan_in(controls) == plan_in(document(file, "--spec", f"#cuda:0;{moved};{donor}"))


@quick
@given(moved=st.tuples(moved_gb, moved_gb))
def test_who_moves_more_keeps_less(file: Path, moved: tuple[float, float]) -> None:
    low, high = sorted(moved)
    kept = [plan_in(document(file, "--virtual-ram-gb", str(each))).bytes_on("cuda:0") for each in (low, high)]
    assert kept[1] <= kept[0]


@quick
@given(spec=specs, policy=st.sampled_from(["stripe", "interleave", "contiguous", "legacy_tail"]))
def test_every_byte_has_one_home_whatever_is_asked(file: Path, spec: str, policy: str) -> None:
    found = document(file, "--spec", spec, "--policy", policy)
    placed = plan_in(found)
    assert sum(placed.bytes_on(name) for name in (placed.compute, *placed.donors)) == found["model_bytes"]
    homes = [home.name for unit in placed.units for home in unit.homes]
    assert sorted(homes) == sorted(transformer_shapes(BLOCKS, WIDTH))


@quick
@given(spec=specs, slots=st.integers(1, 3))
def test_the_document_holds_all_that_made_it(file: Path, spec: str, slots: int) -> None:
    """From its spec and its hardware the same plan and the same prediction come again."""
    from block_discovery import discover_file

    found = document(file, "--spec", spec, "--slots", str(slots), "--compute-seconds", "0.5")
    hardware = Hardware.from_json(json.dumps(found["hardware"]))
    again = plan(discover_file(file), alloc_spec.parse(found["spec"]), hardware, slots=slots)
    assert again == plan_in(found)
    assert predict(again, hardware, compute_seconds=0.5) == Estimate.from_json(json.dumps(found["estimate"]))


@quick
@given(spec=specs, seconds=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)))
def test_a_longer_pass_is_never_slowed_down_more(file: Path, spec: str, seconds: tuple[float, float]) -> None:
    """Of a pass, what transfers take stays: over a longer one they weigh less."""
    slowdowns = []
    for each in sorted(seconds):
        found = document(file, "--spec", spec, "--compute-seconds", repr(each))
        slowdowns.append(Estimate.from_json(json.dumps(found["estimate"])).slowdown)
    assert slowdowns[0] is not None and slowdowns[1] is not None
    assert slowdowns[1] * (1 + 1e-9) >= 1
    assert slowdowns[1] <= slowdowns[0] * (1 + 1e-9)


@quick
@given(spec=specs, rate=st.floats(1, 60))
def test_a_faster_link_makes_nothing_slower(file: Path, spec: str, rate: float) -> None:
    transfers = []
    for each in (rate, 2 * rate):
        code, out = run(
            "plan", file, *MACHINE, "--link", f"cpu={each!r}", "--link", "cuda:1=10", "--spec", spec, "--json"
        )
        assume(code == ExitCode.OK)
        transfers.append(json.loads(out)["estimate"]["transfer_seconds"])
    assert transfers[1] <= transfers[0]


@quick
@given(share=st.integers(1, 99), size_mb=st.integers(1, 4096))
def test_explain_and_alloc_spec_give_the_same_bytes(share: int, size_mb: int) -> None:
    text = f"cuda:0,{share}%;cpu,*"
    code, out = run("explain", text, "--model-size", f"{size_mb}mb", *MACHINE)
    assert code == ExitCode.OK
    memory = {
        name: alloc_spec.DeviceMemory(total=size << 30, free=size << 30)
        for name, size in (("cuda:0", 24), ("cuda:1", 8), ("cpu", 64))
    }
    spec = alloc_spec.parse(text)
    budget = alloc_spec.resolve(spec, model_bytes=size_mb << 20, devices=memory, compute_device="cuda:0")
    for name in ("cuda:0", "cpu"):
        assert f" {budget.bytes_for(name)} bytes" in out


@quick
@given(spec=specs)
def test_tables_and_json_tell_of_the_same_plan(file: Path, spec: str) -> None:
    placed = plan_in(document(file, "--spec", spec))
    code, out = run("plan", file, *MACHINE, *LINKS, "--spec", spec)
    assert code == ExitCode.OK
    rows = out[out.index(" Final assignment ") :].splitlines()
    for name in (placed.compute, *placed.donors):
        (row,) = [row for row in rows if row.startswith(f"{name} ")]
        assert f" {placed.bytes_on(name) / (1 << 20):.2f} " in row
