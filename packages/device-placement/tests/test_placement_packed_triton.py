"""The Triton kernel: interpreted, it decodes what eager torch does; compiled, every GPU generation takes it.

Interpretation is a mode of the whole process, so that what is interpreted runs in another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from device_placement.packed import PackedError
from device_placement.packed._backend import _has_triton, uses_triton

TESTS = Path(__file__).parent

EXACT = """
import torch
from placement_packed import all_patterns_packable, normal, same_bits
from device_placement.packed import decode_with, encode
cases = {
    "patterns": all_patterns_packable()[:40008],
    "ragged": normal(5003),
    "rows": normal(3, 8 * 171),
    "one exponent": torch.ones(2048).bfloat16(),
}
for name, dense in cases.items():
    buffer, layout = encode(dense)
    guarded = torch.full((dense.numel() + 64,), 7.0).bfloat16()
    decode_with(buffer, layout, out=guarded[: dense.numel()].view(dense.shape), decoder="triton")
    assert same_bits(guarded[: dense.numel()].view(dense.shape), dense), name
    assert (guarded[dense.numel() :] == 7).all(), name
    print(name)
buffer, layout = encode(normal(2048))
planes = layout.cut(buffer)
planes.starts[1], planes.low[:], planes.high[:] = 1 << 30, 255, 255
decode_with(buffer, layout, decoder="triton")
print("damaged bytes stay inside")
"""

COMPILED = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from device_placement.packed._triton_kernel import decode_kernel
pointers = {"low": "*u16", "high": "*u8", "starts": "*i32", "rest": "*u8", "escapes": "*u8", "out": "*i16"}
signature = pointers | {"base": "i32", "count": "i32", "escape_count": "i32", "RAGGED": "constexpr"}
aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(pointers))}
for capability in (75, 80, 86, 89, 90, 120):
    for ragged in (False, True):
        source = ASTSource(fn=decode_kernel, signature=signature, constexprs={"RAGGED": ragged}, attrs=aligned)
        ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
        assert ".local" not in ptx
        if not ragged:
            assert re.findall(r"st\\.global[.\\w]*", ptx) == ["st.global.v4.b32"], capability
            assert "ld.global.v2.b32" in ptx, capability
    print(capability)
"""


def run(script: str, tmp_path: Path, **environment: str) -> list[str]:
    """The lines that a script prints in a fresh process."""
    pytest.importorskip("triton")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    home = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **home, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_interpreted_it_decodes_bit_for_bit_and_stays_inside_the_planes(tmp_path: Path) -> None:
    said = run(EXACT, tmp_path, TRITON_INTERPRET="1")
    assert said == ["patterns", "ragged", "rows", "one exponent", "damaged bytes stay inside"]


@pytest.mark.slow
def test_it_compiles_ahead_of_time_with_vector_loads_and_stores(tmp_path: Path) -> None:
    assert run(COMPILED, tmp_path) == ["75", "80", "86", "89", "90", "120"]


def test_triton_is_not_imported_before_it_decodes(tmp_path: Path) -> None:
    script = "import sys, device_placement.packed; print('triton' in sys.modules)"
    assert run(script, tmp_path) == ["False"]


def test_the_decoder_follows_the_device() -> None:
    cpu, cuda, mps = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
    assert [uses_triton("auto", device) for device in (cpu, mps)] == [False, False]
    assert not uses_triton("eager", cuda)
    assert uses_triton("triton", cuda)


def test_triton_on_the_cpu_and_unknown_decoders_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(PackedError, match="cannot read memory of the CPU; use decoder 'auto' or 'eager'"):
        uses_triton("triton", torch.device("cpu"))
    with pytest.raises(PackedError, match="unknown decoder 'cuda'; choose one of auto, eager, triton"):
        uses_triton("cuda", torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_installed", [True, False])
def test_eager_torch_stands_in_for_an_absent_triton_and_says_so_once(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _has_triton.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if is_installed else None)
    cuda = torch.device("cuda", 0)
    with caplog.at_level("WARNING", "device_placement"):
        assert [uses_triton("auto", cuda), uses_triton("auto", cuda)] == [is_installed] * 2
    _has_triton.cache_clear()
    assert caplog.text.count("Triton is not installed") == (not is_installed)
