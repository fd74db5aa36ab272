"""Plans over processes: the same results and the same refusals as over threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gloo_processes import start
from seq_group_runs import a_mismatch_stops_all_and_breaks_nothing, every_kind_is_exact, half_precision_stays_close

from ray_parallel.sequence import Comm

pytestmark = pytest.mark.slow


def test_every_kind_is_exact(tmp_path: Path) -> None:
    start(every_kind_is_exact, 4, tmp_path)


@pytest.mark.parametrize("run", [a_mismatch_stops_all_and_breaks_nothing, half_precision_stays_close])
def test_two_processes(run: Callable[[Comm], None], tmp_path: Path) -> None:
    start(run, 2, tmp_path)
