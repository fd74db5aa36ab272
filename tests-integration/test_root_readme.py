"""The front page tells the truth: its Python runs, its links and pictures exist, its commands are commands."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from comfy_nodes.cli._parser import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(("page", "examples"), [("README.md", 11), ("docs/packed.md", 9)])
def test_the_python_examples_run(page: str, examples: int) -> None:
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert tried >= examples
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_the_commands_can_be_typed() -> None:
    lines = re.findall(r"^uv run torchspan (.+?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(lines) >= 5
    for line in lines:
        build_parser().parse_args(shlex.split(line))


def test_the_files_of_the_table_are_in_their_folders() -> None:
    rows = re.findall(r"^\| .*`_\w+\.py`.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) >= 5
    for row in rows:
        folders = [ROOT / target for target in re.findall(r"\]\(([^)]+)\)", row)]
        for name in re.findall(r"`(_\w+\.py)`", row):
            assert any(found for folder in folders for found in folder.rglob(name)), f"{name} of {row}"
