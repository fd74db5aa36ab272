"""The package as its users meet it: its face, its independence, its documents."""

import dataclasses
import doctest
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import alloc_spec

PACKAGE = Path(__file__).parents[1]
REPOSITORY = PACKAGE.parents[1]
PAGES = (PACKAGE / "README.md", REPOSITORY / "docs" / "allocation-grammar.md")

PUBLIC = alloc_spec.__all__

PROBE = """
import sys
before = set(sys.modules)
import alloc_spec
budget = alloc_spec.resolve(
    alloc_spec.parse("cuda:0,1kb;cpu,*"),
    model_bytes=4096,
    devices={name: alloc_spec.DeviceMemory(total=8192, free=8192) for name in ("cuda:0", "cpu")},
)
assert budget.explain() and alloc_spec.explain("#cuda:0;4;cpu")
try:
    alloc_spec.parse("cuda:0=1gbb")
except alloc_spec.AllocSyntaxError as error:
    str(error)
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"alloc_spec"}
print(sorted(foreign))
"""


def test_nothing_else_is_public() -> None:
    public = {name for name in vars(alloc_spec) if not name.startswith("_")}
    assert public == set(PUBLIC)


def test_every_public_name_is_documented() -> None:
    for name in PUBLIC:
        item = getattr(alloc_spec, name)
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        assert inspect.getdoc(item), name
        members = vars(item) if inspect.isclass(item) else {}
        for member_name, member in members.items():
            if not member_name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{name}.{member_name}"


def test_data_is_frozen_slotted_and_named_by_keyword() -> None:
    public: list[Any] = [getattr(alloc_spec, name) for name in PUBLIC]
    data: list[Any] = [item for item in public if dataclasses.is_dataclass(item)]
    assert len(data) == 11
    for item in data:
        assert item.__dataclass_params__.frozen, item
        assert "__slots__" in vars(item), item
        assert all(field.kw_only for field in dataclasses.fields(item)), item


def test_nothing_but_the_standard_library_is_imported() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_it_works_without_any_installed_package() -> None:
    source = str(PACKAGE / "src")
    probe = f"import sys; sys.path.insert(0, {source!r})\n{PROBE}"
    command = [sys.executable, "-I", "-S", "-c", probe]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_no_dependencies_are_declared() -> None:
    requires = importlib.metadata.requires("alloc-spec") or []
    assert [line for line in requires if "extra ==" not in line] == []


def test_the_types_are_published() -> None:
    assert (PACKAGE / "src" / "alloc_spec" / "py.typed").is_file()


def test_the_changelog_begins_with_this_version() -> None:
    version = importlib.metadata.version("alloc-spec")
    lines = (PACKAGE / "CHANGELOG.md").read_text("utf-8").splitlines()
    headings = [line for line in lines if line.startswith("## ") and line != "## Unreleased"]
    assert headings[0].startswith(f"## {version} ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_the_documents_run(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.attempted >= 6
    assert result.failed == 0


def test_every_text_in_the_tables_of_the_documents_can_be_read() -> None:
    rows = [line for page in PAGES for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    texts = [cell.strip(" `") for row in rows for cell in row.split("|")[1:3] if cell.strip().startswith(("`c", "`#"))]
    readable = [text for text in texts if text != "#COMPUTE;GB;DONORS"]
    assert len(readable) >= 15
    for text in readable:
        alloc_spec.parse(text)


def test_the_fuzzer_finds_nothing_and_prints_its_tables() -> None:
    script = REPOSITORY / "tools" / "bench" / "fuzz_alloc_spec.py"
    command = [sys.executable, str(script), "--count", "500", "--seed", "7", "--samples", "20"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "500 texts in" in result.stdout
    assert "parses a second of CPU time" in result.stdout
