"""The package as a whole: importing does nothing, one file names torch.cuda, and files stay small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import device_placement

SOURCES = sorted(Path(device_placement.__file__).parent.rglob("*.py"))


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
