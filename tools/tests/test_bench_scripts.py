"""The benchmarks start: each explains itself, and the one for a GPU says so where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_streaming
import packed
import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = sorted(path for path in BENCH.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))

# Each script gets what `python script --help` gives it, but for torch, which nearly all import, and which is there.
ASK_EACH = """
import os, runpy, sys, torch
folder, *scripts = sys.argv[1:]
for script in scripts:
    sys.path[0], name = os.path.split(script)
    told = os.path.join(folder, name.removesuffix("py"))
    child = os.fork()
    if not child:
        for number, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(told + ending, os.O_CREAT | os.O_WRONLY, 0o600), number)
        sys.argv = [script, "--help"]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            sys.stdout.flush()
            os._exit(ended.code or 0)  # without taking torch apart again, which takes longer than all the rest
        sys.exit("it did not stop after its help")
    with open(told + "code", "w") as file:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=file)
"""


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, output and complaints of each script that is asked for help in a process of its own."""
    folder = tmp_path_factory.mktemp("help")
    subprocess.run([sys.executable, "-c", ASK_EACH, folder, *SCRIPTS], timeout=240, check=True)
    files = ("code", "out", "err")
    told = {path.stem: [path.with_suffix(f".{file}").read_text() for file in files] for path in folder.glob("*.out")}
    return {name: (int(code), out, err) for name, (code, out, err) in told.items()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes share one import of torch by fork")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_explains_itself(script: Path, explained: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = explained[script.stem]
    assert code == 0, err
    assert f"usage: {script.name}" in out


def stream(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the streaming benchmark with these arguments."""
    monkeypatch.setattr(sys, "argv", ["cuda_streaming.py", *arguments])
    return cuda_streaming.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, and the whole benchmark would run")
def test_the_streaming_benchmark_wants_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stream(monkeypatch) == 1
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert "needs a CUDA GPU" in refused


@pytest.mark.slow
def test_the_streaming_benchmark_works_where_nothing_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--width", "128", "--blocks", "3", "--tokens", "16", "--passes", "2")
    assert stream(monkeypatch, "--device", "cpu", *sizes) == 0
    table = capsys.readouterr().out.splitlines()
    ways = [line.split("|")[1].strip() for line in table if line.endswith("| yes |")]
    assert ways == ["resident", "serial copies", "accelerate cpu_offload"]


@pytest.mark.slow
def test_the_benchmark_of_packed_weights_runs_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert packed.main(["--size", "256", "--repeats", "1", "--link", "1"]) == 0
    said = capsys.readouterr().out
    assert "every bit pattern survives by eager: True" in said
    assert "same bits: True" in said
    ratios = re.findall(r"^(?:made|trained here): .*?\d+\.\d+ +(\d+\.\d) +(\d+\.\d) ", said, re.MULTILINE)
    assert len(ratios) == 9
    assert all(60 < float(bound) < float(ratio) < 76 for bound, ratio in ratios)


def test_the_entropy_bound_of_one_exponent_is_a_half() -> None:
    assert packed.entropy_bound([torch.ones(64, 64).bfloat16()]) == 0.5
