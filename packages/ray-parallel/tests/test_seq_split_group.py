"""Splits over processes: the same results as over threads, idle ranks included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gloo_processes import start
from seq_split_runs import conditions_and_tokens, rows

from ray_parallel.sequence import Comm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("run", "ranks"), [(conditions_and_tokens, 4), (rows, 3)])
def test_processes(run: Callable[[Comm], None], ranks: int, tmp_path: Path) -> None:
    start(run, ranks, tmp_path)
