"""The Triton kernel: interpreted, it gives ggml's bits; compiled, every GPU generation takes it.

Interpretation is a mode of the whole process, so that what is interpreted runs in another one, all of it in one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_packing import BLOCK_TYPES, packed

from gguf_loader._backend import _has_triton, require_backend, uses_triton
from gguf_loader._errors import GgufPackedError
from gguf_loader.dequant._weights import KERNELS
from gguf_loader.packed._config import DequantConfig

TESTS = Path(__file__).parent

EXACT = """
import torch, warnings
from gguf_packing import BLOCK_TYPES, golden, random_blocks, same_bits
from gguf_loader.dequant._dequantize import dequantize
from gguf_loader._types import type_by_name
warnings.simplefilter("ignore")  # inf - inf is meant
for name in BLOCK_TYPES:
    for kind in ("real", "rand"):
        blocks, expected = golden(name, kind)
        for dtype in (torch.float32, torch.float16):
            found = dequantize(blocks, type_by_name(name), (8, 256), dtype=dtype, backend="triton")
            assert same_bits(found, expected.view(8, 256).to(dtype)), (name, kind, dtype)
    print(name)
"""

ANY_ADDRESS = """
import torch, warnings
from gguf_packing import random_blocks, same_bits
from gguf_loader.dequant._dequantize import dequantize
from gguf_loader._types import type_by_name
warnings.simplefilter("ignore")
for name in ("Q8_0", "Q6_K", "MXFP4", "IQ3_S"):
    kind = type_by_name(name)
    for count in (1, 3, 41):
        blocks = random_blocks(kind, count * kind.block_size)
        moved = torch.cat([torch.zeros(5, dtype=torch.uint8), blocks])[5:]
        shape = (count * kind.block_size,)
        guarded = torch.full((shape[0] + 64,), 7.0)
        dequantize(moved, kind, shape, out=guarded[: shape[0]], backend="triton")
        assert same_bits(guarded[: shape[0]], dequantize(blocks, kind, shape, backend="eager")), (name, count)
        assert (guarded[shape[0] :] == 7).all(), (name, count)
        print(name, count)
"""

WHOLE_LAYER = """
import torch
from torch import nn
from gguf_packing import packed
from gguf_loader.packed._config import DequantConfig
from gguf_loader.packed._load import configure, load_packed
layer = nn.Linear(256, 24, bias=False, device="meta")
load_packed(layer, {"weight": packed("Q4_K", 24, 256)}, config=DequantConfig(backend="triton", tile_weights=2048))
x = torch.randn(2, 256)
by_triton = layer(x)
configure(layer, DequantConfig(backend="eager", tile_weights=2048))
assert torch.equal(by_triton, layer(x))
print("equal")
"""

ALL_OF_IT = """
import contextlib, io, json, sys, traceback
said = {}
for name, script in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(script, {})
        except Exception:
            traceback.print_exc(file=out)
    said[name] = out.getvalue().splitlines()
print(json.dumps(said))
"""

IMPORTED = """
import sys, gguf_loader
from gguf_loader.packed import _load, _lora
print("triton" in sys.modules)
from gguf_loader.dequant.triton._launch import DECODERS
print(*DECODERS)
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from gguf_loader.dequant.triton._launch import DECODERS
from gguf_loader.dequant.triton._kernel import RUN, dequantize_kernel
from gguf_loader._types import type_by_name
for name, decoder in DECODERS.items():
    kind = type_by_name(name)
    constants = {
        "TYPE_SIZE": kind.type_size,
        "RUNS": kind.block_size // RUN.value,
        "DECODE": decoder.function,
    }
    for dtype in DTYPES:
        signature = {"blocks": "*u8", "out": "*" + dtype, "table": "*u8", "count": "i32"}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=dequantize_kernel, signature=signature, constexprs=constants)
        binary = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32))
        assert len(binary.asm["cubin"]) > 1000
        assert binary.metadata.shared <= 16 << 10
        assert ".local" not in binary.asm["ptx"], (name, dtype)
    print(name)
"""


def run(script: str, tmp_path: Path, *arguments: str, **environment: str) -> list[str]:
    """The lines that a script prints in a fresh process."""
    pytest.importorskip("triton")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    home = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **home, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each script prints where Triton interprets its kernels."""
    scripts = json.dumps({"exact": EXACT, "any address": ANY_ADDRESS, "whole layer": WHOLE_LAYER})
    (said,) = run(ALL_OF_IT, tmp_path_factory.mktemp("triton"), scripts, TRITON_INTERPRET="1")
    found: dict[str, list[str]] = json.loads(said)
    return found


def test_every_type_has_a_decoder_and_triton_is_imported_for_them_alone(tmp_path: Path) -> None:
    before, decoders = run(IMPORTED, tmp_path)
    assert before == "False"
    assert set(decoders.split()) == set(KERNELS)


def test_interpreted_weights_equal_the_golden_vectors(interpreted: dict[str, list[str]]) -> None:
    assert interpreted["exact"] == list(BLOCK_TYPES)


def test_blocks_may_start_at_any_byte_and_nothing_else_is_written(interpreted: dict[str, list[str]]) -> None:
    names = ("Q8_0", "Q6_K", "MXFP4", "IQ3_S")
    assert interpreted["any address"] == [f"{name} {count}" for name in names for count in (1, 3, 41)]


def test_a_layer_configured_for_triton_uses_it(interpreted: dict[str, list[str]]) -> None:
    assert interpreted["whole layer"] == ["equal"]


# The oldest generation, which has no bfloat16 of its own, and the newest take all dtypes; others the models' own.
ALL = ("fp32", "fp16", "bf16")
GENERATIONS = {75: ALL, 80: ("bf16",), 90: ("bf16",), 120: ALL}


@pytest.mark.slow
@pytest.mark.parametrize("capability", GENERATIONS)
def test_every_decoder_compiles_ahead_of_time(capability: int, tmp_path: Path) -> None:
    script = COMPILED.replace("CAPABILITY", str(capability)).replace("DTYPES", repr(GENERATIONS[capability]))
    assert set(run(script, tmp_path)) == set(KERNELS)


def test_the_backend_follows_the_device() -> None:
    cpu, cuda, mps = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
    assert [uses_triton("auto", device) for device in (cpu, mps)] == [False, False]
    assert not uses_triton("eager", cuda)
    assert uses_triton("triton", cuda)


def test_triton_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(GgufPackedError, match="does not reach memory of the CPU"):
        packed("Q4_K", 256).dequantize(backend="triton")


@pytest.mark.parametrize("check", [require_backend, lambda name: DequantConfig(backend=name)])
def test_unknown_backends_are_refused(check: object) -> None:
    assert callable(check)
    with pytest.raises(GgufPackedError, match="unknown backend 'cuda'; choose one of auto, eager, triton"):
        check("cuda")


@pytest.mark.parametrize("is_installed", [True, False])
def test_on_cuda_eager_torch_stands_in_for_a_triton_that_is_not_there_and_says_so_once(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _has_triton.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if is_installed else None)
    cuda = torch.device("cuda", 0)
    with caplog.at_level("WARNING", "gguf_loader"):
        assert [uses_triton("auto", cuda), uses_triton("auto", cuda)] == [is_installed] * 2
    _has_triton.cache_clear()
    assert caplog.text.count("Triton is not installed") == (not is_installed)
