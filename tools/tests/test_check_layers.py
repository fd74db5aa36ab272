"""Laws of tools/check_layers.py: each rule has a file that breaks it, and the workspace itself keeps them all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import check_layers

REPOSITORY = Path(__file__).resolve().parents[2]


def write_member(root: Path, name: str, *, dependencies: str = "", files: dict[str, str] | None = None) -> Path:
    """Write packages/<name> with the given requirement list and files (paths relative to the package)."""
    folder = root / "packages" / name
    (folder / "src").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\ndependencies = [{dependencies}]\n')
    for path, text in (files or {}).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder


def reasons(root: Path) -> list[str]:
    return [offence.reason for offence in check_layers.check(root)[1]]


def test_this_workspace_keeps_its_arrows(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_layers.main([]) == 0, capsys.readouterr().out


def test_every_package_of_this_workspace_was_read() -> None:
    names = {member.folder.name for member in check_layers.read_members(REPOSITORY)}
    assert names == {path.parent.name for path in (REPOSITORY / "packages").glob("*/pyproject.toml")}
    assert {"alloc-spec", "block-discovery", "device-placement", "gguf-loader", "comfy-nodes"} <= names


def test_arrows_have_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(check_layers.ARROWS):
        ready = {name for name, may in check_layers.ARROWS.items() if name not in done and may <= done}
        assert ready, f"a cycle among {set(check_layers.ARROWS) - done}"
        done |= ready


def test_nothing_may_import_the_face() -> None:
    assert all("comfy_nodes" not in may for may in check_layers.ARROWS.values())


@pytest.mark.parametrize(
    "text",
    [
        "import block_discovery",
        "import block_discovery as found",
        "from block_discovery import discover",
        "def late():\n    from block_discovery import discover",
        "import typing\nif typing.TYPE_CHECKING:\n    import block_discovery",
        "import importlib\nimportlib.import_module('block_discovery')",
        "__import__('block_discovery')",
    ],
)
@pytest.mark.parametrize("folder", ["src/alloc_spec/_a.py", "tests/test_a.py"])
def test_an_import_against_an_arrow_is_found(tmp_path: Path, text: str, folder: str) -> None:
    write_member(tmp_path, "alloc-spec", dependencies='"block-discovery>=0.1"', files={folder: text})
    assert reasons(tmp_path) == ["alloc_spec imports block_discovery, but may import no sibling"]


def test_the_line_of_the_offence_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_member(tmp_path, "alloc-spec", files={"src/alloc_spec/_a.py": "import os\n\nimport comfy_nodes\n"})
    assert check_layers.main(["--root", str(tmp_path)]) == 1
    assert f"{folder / 'src/alloc_spec/_a.py'}:3: alloc_spec imports comfy_nodes" in capsys.readouterr().out


def test_an_allowed_sibling_must_be_declared_by_product_code(tmp_path: Path) -> None:
    files = {"src/device_placement/_a.py": "import alloc_spec\n", "tests/test_a.py": "import alloc_spec\n"}
    write_member(tmp_path, "device-placement", files=files)
    assert reasons(tmp_path) == ["device_placement imports alloc_spec, which its pyproject.toml does not declare"]


def test_an_allowed_and_declared_sibling_is_fine(tmp_path: Path) -> None:
    files = {"src/device_placement/_a.py": "from alloc_spec import parse\n"}
    write_member(tmp_path, "device-placement", dependencies='"alloc-spec>=0.1,<0.2"', files=files)
    assert reasons(tmp_path) == []


@pytest.mark.parametrize("text", ["from alloc_spec._grammar import parse", "from alloc_spec import _grammar"])
def test_a_siblings_private_module_stays_private(tmp_path: Path, text: str) -> None:
    write_member(tmp_path, "device-placement", dependencies='"alloc-spec"', files={"src/device_placement/_a.py": text})
    assert reasons(tmp_path) == ["_grammar is private to alloc_spec; use what its __init__ exports"]


def test_a_packages_own_private_modules_are_its_own_affair(tmp_path: Path) -> None:
    files = {"src/alloc_spec/_a.py": "from alloc_spec._b import b", "tests/test_a.py": "from alloc_spec import _b"}
    write_member(tmp_path, "alloc-spec", files=files)
    assert reasons(tmp_path) == []


@pytest.mark.parametrize(
    ("declared", "text", "accepted"),
    [
        ('"torch>=2.6"', "import torch.nn", True),
        ('"torch>=2.6"', "import triton", True),
        ('"pillow"', "from PIL import Image", True),
        ("\"Some-Thing[extra]>=1; python_version > '3'\"", "import some_thing", True),
        ("", "import json, os.path", True),
        ("", "from . import sibling", True),
        ("", "import torch", False),
        ('"torch>=2.6"', "import numpy", False),
    ],
)
def test_product_code_imports_what_it_declares(tmp_path: Path, declared: str, text: str, accepted: bool) -> None:
    write_member(tmp_path, "gguf-loader", dependencies=declared, files={"src/gguf_loader/_a.py": text})
    assert (reasons(tmp_path) == []) is accepted


def test_tests_may_use_any_third_party(tmp_path: Path) -> None:
    write_member(
        tmp_path, "alloc-spec", files={"tests/test_a.py": "import hypothesis, torch\ntorch.cuda.is_available()"}
    )
    assert reasons(tmp_path) == []


def test_only_the_host_adapter_imports_the_host(tmp_path: Path) -> None:
    files = {
        "src/comfy_nodes/host/_models.py": "import comfy.model_management",
        "src/comfy_nodes/nodes.py": "import comfy.model_management",
    }
    write_member(tmp_path, "comfy-nodes", files=files)
    offences = check_layers.check(tmp_path)[1]
    assert [offence.path.name for offence in offences] == ["nodes.py"]
    assert "only comfy_nodes.host" in offences[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.cuda.synchronize()",
        "import torch as t\nt.cuda.synchronize()",
        "import torch.cuda",
        "import torch.cuda.nvtx",
        "from torch import cuda",
        "from torch.cuda import Stream",
        "def f(torch): return torch.cuda",
    ],
)
def test_torch_cuda_lives_in_the_adapter_alone(tmp_path: Path, text: str) -> None:
    files = {"src/device_placement/_engine.py": text, "src/device_placement/_cuda.py": text, "tests/test_a.py": text}
    write_member(tmp_path, "device-placement", dependencies='"torch"', files=files)
    offences = check_layers.check(tmp_path)[1]
    assert {offence.path.name for offence in offences} == {"_engine.py"}
    assert all("torch.cuda" in offence.reason for offence in offences)


@pytest.mark.parametrize(
    ("package", "adapter", "other"),
    [
        ("gguf-loader", "gguf_loader/_triton_kernels.py", "gguf_loader/_dequant.py"),
        ("gguf-loader", "gguf_loader/dequant/triton/_iq.py", "gguf_loader/dequant/_iq.py"),
        ("device-placement", "device_placement/copying/_cuda.py", "device_placement/copying/_streams.py"),
        ("ray-parallel", "ray_parallel/workers/_cuda.py", "ray_parallel/sequence/_cuda.py"),
    ],
)
def test_the_adapters_of_other_packages_may_name_torch_cuda(
    tmp_path: Path, package: str, adapter: str, other: str
) -> None:
    text = "import torch\ntorch.cuda.synchronize()"
    files = {f"src/{adapter}": text, f"src/{other}": text}
    write_member(tmp_path, package, dependencies='"torch"', files=files)
    assert [str(offence.path.relative_to(tmp_path)) for offence in check_layers.check(tmp_path)[1]] == [
        f"packages/{package}/src/{other}"
    ]


@pytest.mark.parametrize(
    "text", ['"""torch.cuda in words."""', "name = 'torch.cuda'", "import torch\ntorch.device('cuda')"]
)
def test_words_about_cuda_are_not_code(text: str) -> None:
    assert list(check_layers.cuda_lines(ast.parse(text))) == []


def test_a_package_without_arrows_stops_the_check(tmp_path: Path) -> None:
    write_member(tmp_path, "newcomer")
    with pytest.raises(SystemExit, match="newcomer has no row in ARROWS"):
        check_layers.check(tmp_path)


def test_an_empty_folder_is_not_a_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_layers.main(["--root", str(tmp_path)]) == 1
    assert "nothing was checked" in capsys.readouterr().out
