"""The scripts of examples/ run and show what they promise."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWN = {
    "open_a_gguf": "packed=Q8_0)\n)\nsame output: True",
    "place_a_module": "same output: True",
    "plan_for_a_model": "rank 1: ",
    "plan_from_a_header": "cpu     donor",
    "two_workers": "from one process",
}
"""Script -> a part of what it prints."""


def test_every_script_is_in_the_table_and_on_the_page() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"example_model"}
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert scripts == set(SHOWN)
    assert [name for name in scripts if f"({name}.py)" not in page] == []


@pytest.mark.parametrize("name", ["open_a_gguf", "place_a_module", "plan_for_a_model"])
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(name).main()
    assert SHOWN[name] in capsys.readouterr().out


def test_a_header_is_planned_with_and_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("plan_from_a_header")
    example.main([])
    assert SHOWN["plan_from_a_header"] in capsys.readouterr().out
    file = tmp_path / "mine.safetensors"
    example.write_header(file, blocks=8)
    example.main([str(file), "cuda:0,50%;cpu,*"])
    assert "blocks.*      8" in capsys.readouterr().out


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives() -> None:
    command = [sys.executable, str(EXAMPLES / "two_workers.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    assert SHOWN["two_workers"] in run.stdout
