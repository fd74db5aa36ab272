"""Editors, the type checker and the tests look for modules in the same folders."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def test_editors_resolve_what_the_type_checker_resolves() -> None:
    editor = json.loads((ROOT / "pyrightconfig.json").read_text(encoding="utf-8"))
    assert sorted(editor["extraPaths"]) == sorted(TOOLS["mypy"]["mypy_path"])


def test_every_folder_exists() -> None:
    helpers = set(TOOLS["pytest"]["ini_options"]["pythonpath"])
    folders = set(TOOLS["mypy"]["mypy_path"])
    assert helpers <= folders
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
