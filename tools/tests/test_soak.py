"""The soak: every operation comes through, a wrong value ends it, and what grows is named."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import soak
import soak_operations
from soak_operation import Operation


def sample(**more: int) -> soak.Sample:
    return soak.Sample(**{"memory": 1 << 30, "handles": 5, "threads": 1, "children": 0, "files": 0, **more})


def test_every_operation_runs_and_checks_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    operations = soak_operations.operations(ray=False)
    counts, samples = soak.soak(operations, seconds=0, seed=3, folder=tmp_path)
    assert {name for name, _ in counts} == {operation.name for operation in operations}
    assert soak.report(counts, samples) == 0
    assert "too short to see growth" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_wrong_value_ends_the_run_and_names_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(_rng: random.Random, _folder: Path) -> str:
        raise AssertionError("off by one")

    with pytest.raises(AssertionError, match="off by one"):
        soak.soak([Operation(name="wrong", weight=1, run=wrong)], seconds=0, seed=7, folder=tmp_path)
    assert "wrong failed after 0 operations of seed 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "grown"),
    [
        (sample(), set()),
        (sample(memory=(1 << 30) + (40 << 20)), set()),
        (sample(memory=(1 << 30) + (60 << 20)), {"memory"}),
        (sample(handles=6), {"handles"}),
        (sample(threads=2, children=1), {"threads", "children"}),
        (sample(files=1), {"files"}),
    ],
)
def test_what_grew_is_named_and_fails(last: soak.Sample, grown: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    samples = [sample()] * 6 + [last] * 3
    assert set(soak.growth(samples)) == grown
    assert soak.report({}, samples) == bool(grown)
    assert all(f"GROWN: {name}" in capsys.readouterr().out for name in sorted(grown)[:1])
