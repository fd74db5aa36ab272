"""The benchmark scripts run, and judge their numbers by the goals that they print."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_bytes as raw
import pytest
import torch

BENCH = Path(__file__).parents[3] / "tools" / "bench"
TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCH.is_dir(), reason="the scripts are in the repository, not in the package"),
]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Runs the `main` of a script in this process and returns what it prints."""
    threads = torch.get_num_threads()

    def run_here(script: str, *arguments: str) -> str:
        importlib.import_module(script).main(arguments)
        return capsys.readouterr().out

    yield run_here
    torch.set_num_threads(threads)


def run(script: str, *arguments: str) -> str:
    """What a script prints that measures processes, in one of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(BENCH / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def row(table: str, head: str) -> list[str]:
    return next(line.split() for line in table.splitlines() if line.split()[:1] == [head])


def test_opening_is_measured_against_python(tmp_path: Path) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    table = run("gguf_open.py", "--seconds", "0.1", "--file", str(path))
    assert [float(line.split()[2]) > 0 for line in table.splitlines()[2:]] == [True] * 3
    assert "of C" not in table


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_opening_is_measured_against_a_c_library(
    tmp_path: Path, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in for ggml: what is tested here is that its function is found, called and timed, and every handle freed.
    source, library, log = tmp_path / "ggml.cpp", tmp_path / "libggml.so", tmp_path / "log"
    source.write_text(
        f"""
#include <cstdio>
struct Parameters {{ bool no_alloc; void* context; }};
static void say(const char* word) {{ FILE* f = fopen("{log}", "a"); fputs(word, f); fclose(f); }}
extern "C" void* gguf_init_from_file(const char* path, Parameters given) {{
  say(given.no_alloc && !given.context && path[0] == '/' ? "open\\n" : "wrong\\n");
  return new int(1);
}}
extern "C" void gguf_free(void* handle) {{ say("free\\n"); delete static_cast<int*>(handle); }}
"""
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=120)
    path = raw.rich().write(tmp_path / "rich.gguf")
    openers = importlib.import_module("gguf_open").OPENERS
    monkeypatch.setattr("gguf_open.OPENERS", {"read_header": openers["read_header"]})
    table = here("gguf_open", "--seconds", "0.01", "--file", str(path), "--ggml-library", str(library))
    ratios = [line.split()[-1] for line in table.splitlines()[2:]]
    assert ratios[0] == "1.00x"
    assert len(ratios) == 2
    said = log.read_text().split()
    assert said == ["open", "free"] * (len(said) // 2)


def test_a_c_library_that_cannot_open_the_file_is_told(tmp_path: Path) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    command = [sys.executable, str(BENCH / "gguf_open.py"), "--file", str(path), "--ggml-library", "missing.so"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{path} could not be opened:")
    assert "missing.so" in result.stderr


def test_dequantisation_is_measured_against_peers_and_copy(tmp_path: Path, here: Callable[..., str]) -> None:
    # A stand-in for the other project's file: what is tested here is that its function is found, called and timed.
    (tmp_path / "dequant.py").write_text(
        "import torch\ndef dequantize(data, qtype, oshape, dtype=None):\n    return torch.zeros(oshape)\n"
    )
    rates_path = tmp_path / "rates.json"
    table = here(
        "gguf_dequant",
        *("--size", "256", "--repeats", "2", "--types", "Q4_K,Q1_0", "--clock", "cpu", "--no-memory"),
        *("--comfyui-gguf", str(tmp_path), "--json", str(rates_path)),
    )
    rates = json.loads(rates_path.read_text())["rates"]
    assert set(rates["Q4_K"]) - set(rates["Q1_0"]) == {"gguf.quants f32", "ComfyUI-GGUF bf16"}
    assert all(rate > 0 for type_rates in rates.values() for rate in type_rates.values())
    assert row(table, "Q4_K")[1] == f"{rates['Q4_K']['f32 out=']:.2f}"
    assert "of 3 goals met" in table


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_temporary_memory_is_measured_in_a_process_of_its_own() -> None:
    table = run("gguf_dequant.py", "--size", "2048", "--repeats", "1", "--types", "Q4_K")
    mebibytes = float(row(table, "Q4_K")[-1])
    assert 0.5 < mebibytes < 8


def test_a_missed_goal_is_named() -> None:
    rates = {"f32 out=": 5.0, "copy": 10.0, "bf16 out=": 3.0, "bf16 fresh": 3.0, "gguf.quants f32": 1.0}
    both = {"Q8_0": rates | {"ComfyUI-GGUF bf16": 1.0}, "TQ1_0": rates}
    judged = importlib.import_module("gguf_dequant").goals(both, {"Q8_0": 9.0, "TQ1_0": 2.0})
    assert [f"{met} {text}" for text, met in judged] == [
        "False Q8_0: 3.0x ComfyUI-GGUF with out= (>= 4)",
        "True Q8_0: 3.0x ComfyUI-GGUF fresh (>= 2)",
        "False Q8_0: 0.50 of the copy ceiling (>= 0.6)",
        "False Q8_0: 9.0 MiB temporary (<= 8)",
        "True TQ1_0: 5.0x gguf.quants (>= 2)",
        "True TQ1_0: 2.0 MiB temporary (<= 8)",
    ]


def test_lora_is_measured_beside_and_in_the_weight(here: Callable[..., str]) -> None:
    table = here("gguf_lora", "--size", "256", "--tokens", "4", "--rank", "4", "--repeats", "2")
    assert [line.split()[0] for line in table.splitlines()[2:7]] == ["0", "1", "2", "4", "8"]
    assert row(table, "0")[2] == "0.0%"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_share_the_pages_of_a_model() -> None:
    table = run("gguf_sharing.py", "--layers", "2", "--size", "1024")
    assert float(row(table, "1")[2]) == pytest.approx(1.0, abs=0.05)
    assert float(row(table, "2")[2]) <= 1.05


def test_the_script_for_a_gpu_runs_without_one(here: Callable[..., str]) -> None:
    table = here("gguf_cuda", "--device", "cpu", "--size", "256", "--repeats", "1", "--types", "Q4_K,IQ2_XS")
    assert [row(table, name)[1] for name in ("Q4_K", "IQ2_XS")] == ["yes", "yes"]
    assert "LoRA of rank 32" in table
    assert "from the host's memory" in table


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_bit_of_either_backend_is_seen(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype
) -> None:
    gguf_cuda = importlib.import_module("gguf_cuda")
    dequantize: Callable[..., torch.Tensor] = gguf_cuda.dequantize

    def wrong(*arguments: Any, **choices: Any) -> torch.Tensor:
        weights = dequantize(*arguments, **choices)
        if choices == {"backend": backend, "dtype": dtype}:
            weights[5] = weights[5].nextafter(torch.tensor(9.0, dtype=dtype)) if weights[5] < 9 else 0
        return weights

    assert gguf_cuda.exact("Q8_0", torch.device("cpu"))
    monkeypatch.setattr(gguf_cuda, "dequantize", wrong)
    assert not gguf_cuda.exact("Q8_0", torch.device("cpu"))


def test_operations_are_counted_without_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "dequant.py").write_text(
        "import torch\ndef dequantize(data, qtype, oshape, dtype=None):\n"
        "    return torch.zeros(oshape, device=data.device) + 1\n"
    )
    table = run("gguf_operations.py", "--size", "256", "--types", "Q8_0,Q2_K", "--comfyui-gguf", str(tmp_path))
    # The scale made float32, and the product.
    assert row(table, "Q8_0") == ["Q8_0", "2", "1.03", "0.12", "3", "3.00"]
    assert row(table, "Q2_K")[1] == "7"
