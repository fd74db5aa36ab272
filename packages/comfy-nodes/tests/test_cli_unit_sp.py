"""Laws of `torchspan sp`: what it writes can be checked, what does not hold ends with 1, what cannot be read with 2."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from cli_testing import run_torchspan

from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode

pytest.importorskip("ray_parallel")

MODEL = """
import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        q = self.linear(x).unflatten(-1, (2, -1)).transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        {more}
        return x + out


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def probe(step):
    torch.manual_seed(0)
    model = Model().requires_grad_(False)
    return model, {{"x": torch.randn(1, (7, 10, 16, 23)[step], 8)}}


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_model(folder: Path, name: str, more: str = "") -> str:
    """A module of its own name, because Python imports each once; returns what names its probe."""
    (folder / f"{name}.py").write_text(MODEL.format(more=more), encoding="utf-8")
    importlib.invalidate_caches()
    return f"{name}:probe"


def test_a_plan_is_derived_written_and_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = write_model(folder, "sp_plain")
    assert main(["sp", "derive", probe, "--out", "plan.json"]) == ExitCode.OK
    derived = capsys.readouterr()
    assert json.loads((folder / "plan.json").read_text(encoding="utf-8"))["model"] == "sp_plain.Model"
    assert "    cut    x\n    whole  nothing\n    joined after the last block\n" in derived.out
    assert "largest difference from one process on 2 and 3 ranks: " in derived.out
    assert main(["sp", "check", "plan.json", probe]) == ExitCode.OK
    checked = capsys.readouterr()
    assert "it holds today" in checked.out
    for said in (derived.err, checked.err):
        assert "used only where you ask for it" in said


def test_a_model_that_mixes_tokens_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = write_model(folder, "sp_mixing", "out = out + x.cumsum(1)")
    assert main(["sp", "derive", probe, "--out", "plan.json"]) == ExitCode.REFUSED
    assert "torchspan sp derive: none of 2 proposals held" in capsys.readouterr().err
    assert not (folder / "plan.json").exists()


def test_a_branch_on_a_size_is_refused_until_it_is_allowed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = write_model(folder, "sp_branching", "out = -out if x.shape[1] > 500 else out")
    assert main(["sp", "derive", probe, "--out", "plan.json"]) == ExitCode.REFUSED
    assert "Block.forward branches on a size: x.shape[1] > 500" in capsys.readouterr().err
    assert main(["sp", "derive", probe, "--out", "plan.json", "--allow-branches"]) == ExitCode.OK
    assert "  allowed: Block.forward branches on a size" in capsys.readouterr().out


def test_a_plan_that_no_longer_holds_ends_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sp", "derive", write_model(folder, "sp_before"), "--out", "plan.json"]) == ExitCode.OK
    text = (folder / "plan.json").read_text(encoding="utf-8")
    (folder / "plan.json").write_text(text.replace("sp_before", "sp_after"), encoding="utf-8")
    capsys.readouterr()
    drifted = write_model(folder, "sp_after", "out = out + x.cumsum(1)")
    assert main(["sp", "check", "plan.json", drifted]) == ExitCode.REFUSED
    assert "differs from the single-process one" in capsys.readouterr().err


def test_a_plan_of_another_model_ends_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sp", "derive", write_model(folder, "sp_one"), "--out", "plan.json"]) == ExitCode.OK
    assert main(["sp", "check", "plan.json", write_model(folder, "sp_other")]) == ExitCode.REFUSED
    assert "no plan is known for sp_other.Model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ("sp_named", "names no probe; write MODULE:FUNCTION"),
        (":probe", "names no probe"),
        ("sp_nowhere:probe", "sp_nowhere cannot be imported: No module named 'sp_nowhere'; run this in the folder of"),
        ("sp_named:absent", "sp_named.py) has no function absent; name your probe"),
        ("sp_named:number", "sp_named.py) has no function number; name your probe"),
        ("sys:absent", "sys (built into Python) has no function absent"),
    ],
)
def test_a_probe_that_cannot_be_loaded_ends_with_2(
    probe: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(folder, "sp_named")
    assert main(["sp", "derive", probe, "--out", "plan.json"]) == ExitCode.USAGE
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["3", "(3, {})", "(torch.nn.Identity(), [1])", "torch.nn.Identity()"])
def test_a_probe_that_gives_something_else_is_told_what_to_give(
    answer: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"sp_answers_{len(answer)}"
    (folder / f"{name}.py").write_text(f"import torch\n\ndef probe(step):\n    return {answer}\n", encoding="utf-8")
    importlib.invalidate_caches()
    assert main(["sp", "derive", f"{name}:probe", "--out", "plan.json"]) == ExitCode.USAGE
    assert "return the model and a dict of the arguments of its forward" in capsys.readouterr().err
    assert not (folder / "plan.json").exists()


def test_what_a_probe_raises_keeps_its_traceback(folder: Path) -> None:
    (folder / "sp_raises.py").write_text("def probe(step):\n    raise LookupError('mine')\n", encoding="utf-8")
    importlib.invalidate_caches()
    with pytest.raises(LookupError, match="mine"):
        main(["sp", "derive", "sp_raises:probe", "--out", "plan.json"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no such file or directory; check the name"),
        (b"{}", "this is no plan file"),
        (b"no JSON", "this is no plan file"),
        (b"\xff\xfe", "it is no text; name a file that `torchspan sp derive` wrote"),
    ],
)
def test_a_file_that_is_no_plan_ends_with_2(
    data: bytes | None, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if data is not None:
        (folder / "plan.json").write_bytes(data)
    assert main(["sp", "check", "plan.json", "sp_named:probe"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith(f"torchspan sp check: plan.json: {reason}")


@pytest.mark.parametrize(
    ("target", "reason"),
    [("absent/plan.json", "there is no folder absent; make it"), (".", "is a folder; name a file")],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_trial(
    target: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sp", "derive", "sp_never_imported:probe", "--out", target]) == ExitCode.REFUSED
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("command", [["derive", "a:b", "--out", "p"], ["check", "p", "a:b"]])
def test_without_ray_parallel_a_sentence_says_what_adds_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["sp", *command]) == ExitCode.REFUSED
    assert 'pip install "comfy-nodes[ray]" adds it' in capsys.readouterr().err


@pytest.mark.slow
def test_a_shell_finds_the_probe_in_the_current_folder(folder: Path) -> None:
    done = run_torchspan("sp", "derive", write_model(folder, "sp_shell"), "--out", "plan.json", folder=folder)
    assert (done.code, done.err.count("\n")) == (ExitCode.OK, 1)
    assert main(["sp", "check", "plan.json", "sp_shell:probe"]) == ExitCode.OK
