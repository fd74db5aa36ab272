"""The real command in a separate process: exit codes, streams, pipes, and how quickly it answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_testing import run_torchspan, transformer_shapes, write_header

MACHINE = ("--device", "cuda:0=24gb,22gb", "--device", "cpu=64gb", "--link", "cpu=25")
SPEC = ("--spec", "cuda:0,6gb;cpu,*")
GIB = 1 << 30


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header of a model of more than 20 GB, 60 blocks as Qwen-Image has; there are no weights behind it."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    claimed = write_header(path, transformer_shapes(60, 3900), dtype="BF16")
    assert claimed > 20 * GIB
    assert path.stat().st_size < 1 << 20
    return path


def test_a_plan_of_a_20_gb_header_is_quick(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = run_torchspan("plan", large, *SPEC, *MACHINE)
        seconds.append(time.perf_counter() - began)
        assert done.code == 0, done.err
    assert "60 blocks" in done.out
    assert "before its header says" in done.err
    with capsys.disabled():
        print(f"\ntorchspan plan on a header of 20 GB: {min(seconds):.2f} s (best of 3, interpreter start included)")


def test_a_plan_with_devices_given_does_not_load_torch(large: Path) -> None:
    """What makes it quick: importing torch alone takes seconds."""
    program = f"""
import sys
from comfy_nodes.cli import main
code = main({["plan", str(large), *SPEC, *MACHINE, "--compute-seconds", "2"]!r})
sys.exit(code or ("torch was loaded" if "torch" in sys.modules else 0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_exit_codes_and_streams(large: Path) -> None:
    good = run_torchspan("explain", "cuda:0,2gb;cpu,*")
    assert (good.code, good.err) == (0, "")
    unreadable = run_torchspan("explain", "cuda:0,2gb,cpu,*")
    assert (unreadable.code, unreadable.out) == (2, "")
    too_small = run_torchspan("plan", large, "--spec", "cuda:0,*", "--device", "cuda:0=8gb", "--device", "cpu=8gb")
    assert (too_small.code, too_small.out) == (1, "")
    wrong_words = run_torchspan("plan")
    assert (wrong_words.code, wrong_words.out) == (2, "")
    for done in (unreadable, too_small, wrong_words):
        assert "Traceback" not in done.err
        assert done.err.strip()


def test_a_closed_pipe_is_no_traceback(large: Path) -> None:
    """What `| head` leaves behind once it has seen enough: nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "comfy_nodes.cli", "plan", str(large), *SPEC, *MACHINE]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_json_goes_to_stdout_alone(large: Path, tmp_path: Path) -> None:
    done = run_torchspan("plan", large, *SPEC, *MACHINE, "--json", folder=tmp_path)
    assert done.out.startswith("{\n")
    assert done.out.endswith("}\n")
    assert done.err.startswith("warning: ")


def test_devices_are_listed_on_this_machine() -> None:
    done = run_torchspan("devices")
    assert done.code == 0, done.err
    assert "\ncpu " in done.out


@pytest.mark.slow
def test_the_demo_as_a_person_would_run_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all its parts: the streamed run, and the same on two workers of a real cluster."""
    began = time.perf_counter()
    done = run_torchspan("demo", "--out", tmp_path)
    seconds = time.perf_counter() - began
    assert done.code == 0, done.err
    assert "output difference to the unplaced model: 0.0\n" in done.out
    (told,) = re.findall(r"^relative difference to the single process: (.*)$", done.out, flags=re.MULTILINE)
    assert 0.0 <= float(told) <= 1e-6
    assert "weights by file, 2 workers hold" in done.out
    assert "0 bytes of it private to one" in done.out
    assert "2 workers ........ " in done.out
    assert re.search(r"sent up to \d+\.\d\d MiB, exactly as the cost model counts", done.out), done.out
    assert re.search(r"predicted for 2 devices .*: [\d.]+ ms a step, 1\.\d\d x as fast", done.out), done.out
    with capsys.disabled():
        (row,) = (line for line in done.out.splitlines() if line.startswith("a pass  "))
        print(f"\ntorchspan demo: {seconds:.1f} s; {' '.join(row.split())}")
