"""Every package works as a built wheel in an environment that knows nothing of the workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import smoke_wheels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH; pip install uv"),
]


def test_wheels_install_import_and_run_outside_the_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    code = smoke_wheels.main([])
    said = capsys.readouterr().out
    assert code == 0, said
    packages = {
        path.parent.name.replace("-", "_") for path in Path(smoke_wheels.ROOT).glob("packages/*/pyproject.toml")
    }
    for package in packages:
        assert f"{package} 0." in said
    assert said.count("imported from its wheel, requirements met") == len(packages)
    assert "cuda:0 holds 2 GiB of the model" in said
