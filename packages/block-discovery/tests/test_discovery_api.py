"""The public face: names, docstrings, errors, and what an import must not bring along."""

from __future__ import annotations

import doctest
import pickle
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from discovery_testing import header_of, write_safetensors

import block_discovery
from block_discovery import BlockDiscoveryError, HeaderError


def test_the_package_is_typed() -> None:
    assert files("block_discovery").joinpath("py.typed").is_file()


def test_the_import_brings_no_model_library_along() -> None:
    code = "import sys, block_discovery; print({'diffusers', 'transformers', 'accelerate'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_headers_trees_and_json_need_no_torch(tmp_path: Path) -> None:
    """Importing torch takes seconds; reading a header takes milliseconds."""
    path = write_safetensors(tmp_path / "m.safetensors", header_of({f"blocks.{i}.w.weight": 4 for i in range(4)}))
    code = f"""
import sys
import block_discovery as discovery
tree = discovery.discover_file({str(path)!r})
assert discovery.BlockTree.from_json(tree.to_json()) == tree
assert discovery.discover_names({{"a.weight": ((4, 4), "BF16")}})
try:
    discovery.read_safetensors_header({str(tmp_path)!r})
except discovery.NotRegularFileError:
    print("torch" in sys.modules, "numpy" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False False"


ERRORS = [
    value
    for value in vars(block_discovery).values()
    if isinstance(value, type) and issubclass(value, BlockDiscoveryError)
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_form_one_tree_and_cross_process_boundaries(error: type[BlockDiscoveryError]) -> None:
    one = error("is wrong", remedy="mend it", subject="file a", offset_bytes=8)
    other = pickle.loads(pickle.dumps(one))
    assert type(other) is error
    assert str(other) == str(one) == "file a at byte 8: is wrong; mend it"
    assert (other.reason, other.remedy, other.subject, other.offset_bytes) == ("is wrong", "mend it", "file a", 8)


def test_an_error_without_subject_or_remedy_reads_well() -> None:
    assert str(HeaderError("is wrong")) == "is wrong"
    assert str(HeaderError("is wrong", subject="file a")) == "file a: is wrong"


def test_what_the_readme_shows_is_what_happens() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False)
    assert tried > 10
    assert failed == 0
