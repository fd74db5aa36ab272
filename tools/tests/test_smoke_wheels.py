"""Laws of tools/smoke_wheels.py that need no build; the whole run is tests-integration/test_cli_wheels.py."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

import smoke_wheels

SOUND = ("alloc_spec/__init__.py", "alloc_spec/py.typed", "alloc_spec-0.1.0.dist-info/licenses/LICENSE")


def write_wheel(folder: Path, names: tuple[str, ...], *, filler_bytes: int = 0) -> Path:
    wheel = folder / "alloc_spec-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "")
        if filler_bytes:
            archive.writestr("alloc_spec/data.bin", bytes(filler_bytes))
    return wheel


def test_a_sound_wheel_has_no_fault(tmp_path: Path) -> None:
    assert list(smoke_wheels.inspect_wheel(write_wheel(tmp_path, SOUND))) == []


@pytest.mark.parametrize(("missing", "word"), [("alloc_spec/py.typed", "py.typed"), (SOUND[2], "LICENSE")])
def test_a_missing_file_is_a_fault(tmp_path: Path, missing: str, word: str) -> None:
    wheel = write_wheel(tmp_path, tuple(name for name in SOUND if name != missing))
    (fault,) = smoke_wheels.inspect_wheel(wheel)
    assert word in fault


def test_a_file_outside_the_package_is_a_fault(tmp_path: Path) -> None:
    (fault,) = smoke_wheels.inspect_wheel(write_wheel(tmp_path, (*SOUND, "tests/test_a.py")))
    assert "tests/test_a.py" in fault


def test_a_wheel_with_a_model_in_it_is_a_fault(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, SOUND, filler_bytes=smoke_wheels.MAX_WHEEL_BYTES)
    (fault,) = smoke_wheels.inspect_wheel(wheel)
    assert "more than" in fault


def test_an_editable_install_does_not_pass_for_a_wheel() -> None:
    faults = list(smoke_wheels.inspect_installed("alloc_spec"))
    assert any("not from the wheel" in fault for fault in faults)


def test_an_installed_third_party_passes() -> None:
    assert list(smoke_wheels.inspect_installed("pytest")) == []


def test_a_name_in_all_that_does_not_exist_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("hollow_package.py").write_text('__all__ = ["missing"]\n')
    metadata = tmp_path / "hollow_package-0.1.0.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: hollow_package\nVersion: 0.1.0\n"
        "Requires-Dist: pytest<1\nRequires-Dist: no-such-distribution\nRequires-Dist: absent; extra == 'more'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    faults = "\n".join(smoke_wheels.inspect_installed("hollow_package"))
    sys.modules.pop("hollow_package")
    assert "hollow_package.missing is listed in __all__ and does not exist" in faults
    assert "requires pytest<1, and pytest" in faults
    assert "requires no-such-distribution, and no-such-distribution is not there" in faults
    assert "absent" not in faults


def test_a_failed_build_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke_wheels.main(["--root", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "exit code" in said
    assert "uv build" in said


def test_a_missing_uv_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert smoke_wheels.main([]) == 1
    assert "pip install uv" in capsys.readouterr().out
