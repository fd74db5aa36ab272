"""The host contract says what the code does, is met by the releases at hand, and loses only what a release broke."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import get_comfyui
import host_contract
import host_uses
from comfy_nodes.contract import Checkout, check, load_contract
from comfy_nodes.nodes import _unmet
from comfy_nodes.nodes.table._table import TABLE

ROOT = Path(__file__).resolve().parents[2]
OLDER = ("0.3.64", "0.4.0", "0.12.0", "0.16.0", "0.23.0")


def test_the_file_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert host_contract.main(["--check"]) == 0, capsys.readouterr().out


def test_what_people_wrote_beside_the_code_is_used() -> None:
    names = {need.name for need in load_contract().needs}
    overrides = {need.name.rpartition(".")[2] for need in load_contract().needs if need.kind == "override"}
    assert set(host_contract.WITHOUT) <= names
    assert set(host_contract.LOUD) <= set(host_contract.WITHOUT)
    assert overrides >= host_contract.NO_SUPER | host_contract.NO_SUPER_OPTIONAL
    assert set(host_contract.RUNS_ALSO) <= {row.runs for row in TABLE.values()}
    adapter = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / host_contract.SOURCE).rglob("host/**/*.py")
    )
    for key in host_contract.KEYS:
        assert f'"{key}"' in adapter, key


@pytest.mark.parametrize(
    ("line", "name", "kind"),
    [
        ("def added() -> None:\n    comfy.utils.new_function(1, colour=2)\n", "comfy.utils.new_function", "symbol"),
        ("def added(patcher: Any) -> Any:\n    return patcher.new_attribute\n", "new_attribute", "attribute"),
        ("def added(patcher: Any) -> Any:\n    return getattr(patcher, 'perhaps', None)\n", "perhaps", "attribute"),
        (
            "class Added(comfy.model_patcher.ModelPatcher):\n    def detach(self) -> Any:\n        super().detach(1)\n",
            "comfy.model_patcher.ModelPatcher.detach",
            "override",
        ),
    ],
)
def test_new_code_changes_the_contract(tmp_path: Path, line: str, name: str, kind: str) -> None:
    source = tmp_path / host_contract.SOURCE
    shutil.copytree(ROOT / host_contract.SOURCE, source, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    (file,) = [path for path in source.rglob("host/**/*.py") if "def dynamic_vram_is_on" in path.read_text("utf-8")]
    file.write_text(file.read_text(encoding="utf-8") + "\n\n" + line, encoding="utf-8")
    before = {(need.name, need.kind) for need in load_contract().needs}
    added = [need for need in host_contract.contract(tmp_path).needs if (need.name, need.kind) not in before]
    assert [(need.name, need.kind, need.optional) for need in added] == [(name, kind, name == "perhaps")]


@pytest.fixture
def comfyui() -> Path:
    folder = get_comfyui.find_comfyui()
    if folder is None:
        pytest.skip("no ComfyUI checkout")
    return folder


def changed(comfyui: Path, folder: Path, file: str, old: str, new: str) -> Path:
    """A checkout that differs in one file; the rest are links to the other."""
    shutil.copytree(
        comfyui / "comfy", folder / "comfy", ignore=shutil.ignore_patterns("ldm", "*.json", "text_encoders")
    )
    for name in (
        "comfy_api",
        "comfy_execution",
        "comfy_extras",
        "nodes.py",
        "folder_paths.py",
        "server.py",
        "execution.py",
    ):
        (folder / name).symlink_to(comfyui / name)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


@pytest.mark.host
def test_this_release_meets_it(comfyui: Path) -> None:
    assert [each for each in check(load_contract(), Checkout(comfyui)) if not each.need.optional] == []


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("version", OLDER)
def test_older_releases_meet_it(comfyui: Path, tmp_path: Path, version: str) -> None:
    try:
        get_comfyui.get(str(comfyui), tmp_path / "ComfyUI", version=version)
    except get_comfyui.CheckoutError as error:
        pytest.skip(f"no ComfyUI {version}: {error}")
    checkout = Checkout(tmp_path / "ComfyUI")
    assert [each for each in check(load_contract(), checkout) if not each.need.optional] == []


@pytest.mark.host
def test_every_method_that_replaces_the_hosts_is_in_it(comfyui: Path) -> None:
    """The code alone does not show which methods of ours the host has, too, where they do not ask for its own."""
    host = Checkout(comfyui)
    known = {need.name for need in load_contract().needs if need.kind == "override"}
    perhaps = {
        use.name
        for unit in host_uses.units(ROOT / host_contract.SOURCE, frozenset()).values()
        for use in unit.uses
        if use.kind == "perhaps override"
    }
    replaced = {name for name in perhaps if (found := host.find(name)) is not None and found.node is not None}
    assert replaced <= known


LOSSES = {
    "a function is gone": (
        *("comfy/controlnet.py", "def load_controlnet(", "def load_control_net("),
        *("comfy.controlnet.load_controlnet", "the host does not have it"),
        {"ControlNetLoader", "DiffControlNetLoader"},
    ),
    "an argument is new": (
        *("comfy/clip_vision.py", "def load(ckpt_path):", "def load(ckpt_path, kind):"),
        *("comfy.clip_vision.load", "it requires the argument 'kind'"),
        {"CLIPVisionLoader"},
    ),
    "a method is called with more": (
        *("comfy/model_patcher.py", "def unpatch_hooks(self, ", "def unpatch_hooks(self, first=None, "),
        *("comfy.model_patcher.ModelPatcher.unpatch_hooks", "the host may give it the argument 'first'"),
        None,
    ),
    "an attribute is renamed": (
        *("comfy/model_patcher.py", "self.hook_backup", "self.kept_by_hooks"),
        *("comfy.model_patcher.ModelPatcher.hook_backup", "the host does not have it"),
        None,
    ),
}


@pytest.mark.host
@pytest.mark.parametrize("case", LOSSES)
def test_a_change_costs_the_nodes_that_need_it(comfyui: Path, tmp_path: Path, case: str) -> None:
    file, old, new, name, reason, lost = LOSSES[case]
    host = changed(comfyui, tmp_path, file, old, new)
    broken = [each for each in check(load_contract(), Checkout(host)) if not each.need.optional]
    assert [(each.need.name, each.reason) for each in broken] == [(name, reason)]
    ids = set(_unmet.disabled(broken, TABLE))
    if lost is not None:
        assert ids == {node_id for node_id, row in TABLE.items() if row.runs in lost}
    else:
        assert {row.runs for node_id, row in TABLE.items() if node_id not in ids} >= {
            "TorchspanDoctor",
            "TorchspanPlan",
        }


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The running host is looked at once a process."""
    _unmet.disabled_here.cache_clear()
    yield
    _unmet.disabled_here.cache_clear()
