"""Time and memory to open GGUF files: this package against gguf.GGUFReader and ggml's C, and two processes against one.

Usage: python tools/bench/gguf_open.py [--seconds 5] [--file real.gguf ...] [--ggml-library libggml-base.so]

Without `--file`, three files are made: 1,000 tensors of 4.2 GB (sparse), a vocabulary of 262,144 tokens with 514,906
merges, and 256 MiB of weights to share. Times are the least of some seconds of repeats; memory is what the first
opening adds to the resident set of a fresh process, the pages of the file that were read included. `--ggml-library` is
a shared library of ggml with its C reader (the source distribution of ggml-python has it: build the target ggml-base);
with it, the ratio to C is printed for each opener.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "gguf-loader" / "tests"))

import gguf_bytes as raw

OPENERS = {
    "read_header": "from gguf_loader import read_header as opener",
    "open_gguf": "from gguf_loader import open_gguf as opener",
    "gguf.GGUFReader": "import torch; from gguf import GGUFReader as opener",
}

C_OPENER = """
import ctypes, torch

class Parameters(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]

ggml = ctypes.CDLL({library!r})
ggml.gguf_init_from_file.argtypes, ggml.gguf_init_from_file.restype = [ctypes.c_char_p, Parameters], ctypes.c_void_p
ggml.gguf_free.argtypes, ggml.gguf_free.restype = [ctypes.c_void_p], None

class opener:
    def __init__(self, path):
        self.header = ggml.gguf_init_from_file(path.encode(), Parameters(True, None))
        if not self.header:
            sys.exit(f"ggml cannot read {{path}}")

    def __del__(self):
        ggml.gguf_free(self.header)
"""

TIME_SCRIPT = """
import json, resource, sys, time
{importing}
path, budget = sys.argv[1], float(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = []
while not seconds or sum(seconds) < budget:
    start = time.perf_counter()
    opened = opener(path)
    seconds.append(time.perf_counter() - start)
    if len(seconds) == 1:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    opened = None
print(json.dumps([min(seconds) * 1e3, memory / 1024]))
"""

SHARE_SCRIPT = """
import sys
from gguf_loader import open_gguf
file = open_gguf(sys.argv[1])
tensors = [file.tensor_bytes(name) for name in file.header.tensors]
print(sum(int(tensor.sum()) for tensor in tensors), flush=True)
sys.stdin.readline()
pss = 0
inside = False
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        inside = line.rstrip().endswith(sys.argv[1])
    elif inside and line.startswith("Pss:"):
        pss += int(line.split()[1])
print(pss, flush=True)
sys.stdin.readline()
"""


def many_tensors(path: Path) -> None:
    """1,000 Q4_K tensors of 3072 x 2432, with nothing behind the header but a hole."""
    size = 3072 * 2432 // 256 * 144
    tensors = [
        raw.Tensor(f"double_blocks.{index}.img_attn.qkv.weight", (3072, 2432), 12, b"", offset=index * size)
        for index in range(1000)
    ]
    head = raw.File(pairs=[raw.pair("general.architecture", raw.STRING, "flux")], tensors=tensors).head()
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // 32) * 32 + 1000 * size)


def vocabulary(path: Path) -> None:
    """As many strings as the vocabulary of gemma-4 has."""
    tokens = [f"▁token{index}" for index in range(262_144)]
    merges = [f"▁to ken{index}" for index in range(514_906)]
    pairs = [
        raw.pair("general.architecture", raw.STRING, "gemma4"),
        raw.pair("tokenizer.ggml.tokens", raw.ARRAY, raw.array(raw.STRING, tokens)),
        raw.pair("tokenizer.ggml.scores", raw.ARRAY, raw.array(raw.FLOAT32, [0.0] * len(tokens))),
        raw.pair("tokenizer.ggml.merges", raw.ARRAY, raw.array(raw.STRING, merges)),
    ]
    raw.File(pairs=pairs).write(path)


def weights(path: Path) -> None:
    """256 MiB of Q8_0 and F32 weights with real bytes."""
    q8 = bytes(range(1, 256)) * (((128 << 20) // 34 * 34) // 255 + 1)
    q8 = q8[: (128 << 20) // 34 // 128 * 128 * 34]
    f32 = bytes(range(1, 129)) * (1 << 20)
    tensors = [
        raw.Tensor("q8", (4096, len(q8) // 34 * 32 // 4096), raw.Q8_0, q8),
        raw.Tensor("f32", (1 << 10, 1 << 15), raw.F32, f32),
    ]
    raw.File(tensors=tensors).write(path)


def measure(importing: str, path: Path, seconds: float) -> tuple[float, float]:
    """Least milliseconds to open a file, and MiB of the first time, in a fresh process.

    Raises:
        SystemExit: the opener failed; says how.
    """
    script = TIME_SCRIPT.format(importing=importing)
    command = [sys.executable, "-c", script, str(path), str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{path} could not be opened:\n{run.stderr.rstrip()}")
    milliseconds, mebibytes = json.loads(run.stdout)
    return milliseconds, mebibytes


def shared_pss_kib(path: Path, processes: int) -> int:
    """Sum of the processes' proportional shares of one mapped file, after each has read all of it."""
    command = [sys.executable, "-c", SHARE_SCRIPT, str(path)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    pipes = [(child.stdin, child.stdout) for child in running]
    for _, out in pipes:
        assert out is not None
        out.readline()
    total = 0
    for into, out in pipes:
        assert into is not None
        assert out is not None
        into.write("\n")
        into.flush()
        total += int(out.readline())
    for child in running:
        child.communicate("\n")
    return total


def main(given: Sequence[str] | None = None) -> None:
    """Parse the command line, make the files, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="how long each opener repeats itself, at least once")
    parser.add_argument("--file", type=Path, action="append", default=[])
    parser.add_argument("--ggml-library", type=Path, help="shared library with ggml's C reader, to compare with")
    arguments = parser.parse_args(given)
    openers = OPENERS
    if arguments.ggml_library:
        openers = {"C (ggml)": C_OPENER.format(library=str(arguments.ggml_library.resolve())), **OPENERS}
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = arguments.file
        if not paths:
            paths = [Path(folder) / "1000-tensors-4.2GB.gguf", Path(folder) / "262k-tokens-515k-merges.gguf"]
            many_tensors(paths[0])
            vocabulary(paths[1])
        print(f"{'file':<34}{'opener':<18}{'ms':>10}{'MiB':>9}" + f"{'of C':>9}" * bool(arguments.ggml_library))
        for path in paths:
            first = None
            for opener, importing in openers.items():
                milliseconds, mebibytes = measure(importing, path, arguments.seconds)
                first = first or milliseconds
                ratio = f"{milliseconds / first:>8.2f}x" if arguments.ggml_library else ""
                print(f"{path.name:<34}{opener:<18}{milliseconds:>10.2f}{mebibytes:>9.1f}{ratio}", flush=True)
        if not arguments.file and sys.platform == "linux":
            path = Path(folder) / "weights.gguf"
            weights(path)
            one, two = shared_pss_kib(path, 1), shared_pss_kib(path, 2)
            print(f"sum of Pss: one process {one / 1024:.1f} MiB, two {two / 1024:.1f} MiB: {two / one:.3f}x")


if __name__ == "__main__":
    main()
