"""The three ways to install the pack, each as a person would, in a Python that knows nothing of the workspace.

Registry: the built zip, unpacked. Clone: `git clone` of the repository. pip: wheels, then `torchspan link`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import build_pack
import smoke_wheels
from comfy_nodes.nodes.table._table import TABLE
from comfyui_server import HERE, Server, require_comfyui, running_server

ROOT = HERE.parent
PACK = "torchspan"
EXTRA_SECONDS = 2.0
FORBIDDEN = {"ray", "ray_parallel"}

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH; pip install uv"),
]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    require_comfyui()
    return smoke_wheels.build(ROOT, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with all third parties and nothing of ours, as the host of somebody else would run in."""
    folder = tmp_path_factory.mktemp("stranger") / "venv"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # Python reads no .pth files of folders that a .pth file adds: the workspace's editable installs stay invisible.
    third_parties = [sysconfig.get_path("purelib"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    Path(site, "third_parties.pth").write_text("\n".join(filter(None, third_parties)) + "\n", encoding="utf-8")
    return python


def from_registry(wheels: tuple[Path, ...], base: Path, work: Path) -> Path:
    build_pack.assemble(ROOT, wheels, work / PACK)
    build_pack.zip_folder(work / PACK, work / "pack.zip")
    with zipfile.ZipFile(work / "pack.zip") as archive:
        archive.extractall(base / "custom_nodes" / PACK)
    return base / "custom_nodes" / PACK


def from_clone(_wheels: tuple[Path, ...], base: Path, _work: Path) -> Path:
    target = base / "custom_nodes" / PACK
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), target], check=True)
    return target


def from_pip(wheels: tuple[Path, ...], base: Path, work: Path) -> Path:
    site = work / "site"
    command = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--target", site, *wheels]
    subprocess.run([str(word) for word in command], check=True, cwd=work)
    linked = subprocess.run(
        [sys.executable, "-m", "comfy_nodes.cli", "link", "--comfyui", base],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linked.returncode == 0, linked.stderr
    assert str(site) in linked.stdout
    return site


WAYS: dict[str, Callable[[tuple[Path, ...], Path, Path], Path]] = {
    "registry": from_registry,
    "clone": from_clone,
    "pip": from_pip,
}


@pytest.fixture(scope="module", params=WAYS)
def installed(
    request: pytest.FixtureRequest,
    wheels: tuple[Path, ...],
    stranger: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Server, Path]]:
    """A server with the pack installed in one of the ways, and the folder that its package must come from."""
    work = tmp_path_factory.mktemp(request.param)
    base = work / "base"
    (base / "custom_nodes").mkdir(parents=True)
    root = WAYS[request.param](wheels, base, work)
    with running_server(base, packs=[PACK], python=stranger) as server:
        yield server, root


def test_the_stranger_has_nothing_of_ours(stranger: Path) -> None:
    program = "import importlib.util as u; print([bool(u.find_spec(n)) for n in ('torch', 'gguf', 'comfy_nodes')])"
    done = subprocess.run([stranger, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "[True, True, False]\n"


def test_every_id_is_served(installed: tuple[Server, Path]) -> None:
    server, _ = installed
    nodes = server.get("/object_info")
    assert set(TABLE) <= set(nodes), server.log[-3000:]
    assert {nodes[name]["python_module"] for name in TABLE} == {f"custom_nodes.{PACK}"}


def test_all_packages_come_from_where_they_were_installed(installed: tuple[Server, Path]) -> None:
    server, root = installed
    origins = server.state()["origins"]
    assert {"comfy_nodes", "alloc_spec", "device_placement"} <= set(origins)
    for path in origins.values():
        assert Path(path).resolve().is_relative_to(root.resolve())


def test_neither_ray_nor_much_time_is_spent_on_starting(installed: tuple[Server, Path]) -> None:
    server, _ = installed
    assert not FORBIDDEN & set(server.state()["modules"])
    (seconds,) = re.findall(rf"([\d.]+) seconds: \S*/{PACK}\n", server.log)
    assert float(seconds) < EXTRA_SECONDS


def test_the_page_of_each_node_is_served(installed: tuple[Server, Path]) -> None:
    server, _ = installed
    for name in TABLE:
        with urllib.request.urlopen(f"{server.url}/extensions/{PACK}/docs/{name}.md", timeout=10) as answer:
            assert answer.read(), name


def test_the_host_finds_translations_and_examples(installed: tuple[Server, Path]) -> None:
    server, _ = installed
    assert set(TABLE) <= set(server.get("/i18n")["en"]["nodeDefs"])
    assert server.get("/workflow_templates").get(PACK)


def test_doctor_recognises_the_way(installed: tuple[Server, Path], request: pytest.FixtureRequest) -> None:
    server, _ = installed
    way = {"registry": "built pack", "clone": "clone", "pip": "link"}[request.node.callspec.params["installed"]]
    done = subprocess.run(
        [sys.executable, "-m", "comfy_nodes.cli", "doctor", "--json", "--comfyui", server.base],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    messages = [finding["message"] for finding in json.loads(done.stdout)["comfyui"] if finding["subject"] == "pack"]
    assert messages == [f"installed as a {way} in {server.base.resolve() / 'custom_nodes' / PACK}"]
