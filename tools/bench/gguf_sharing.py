"""Whether processes that load the same quantised model share its memory while they compute with it.

Usage: python tools/bench/gguf_sharing.py [--layers 8] [--size 4096] [--processes 2]      (Linux only)

Writes a GGUF file of Q4_K layers, lets processes load it into a model and run a forward, and adds up their
proportional shares (Pss) of the file's pages: 1.0 times the file is perfect, n times is a copy for each. The anonymous
memory that load and forward add to a process (whatever was copied, dense tiles, working memory of torch) is listed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gguf
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "gguf-loader" / "tests"))

from gguf_packing import tame_blocks

from gguf_loader import type_by_name

CHILD = """
import sys, torch
from pathlib import Path
from torch import nn
from gguf_loader import load_gguf, load_packed
torch.set_num_threads(1)
path, layers, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def own_kib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

before = own_kib()
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(layers)))
load_packed(model, load_gguf(path).state_dict)
with torch.no_grad():
    model(torch.ones(4, size))
print("ready", flush=True)
sys.stdin.readline()
pss, inside = 0, False
for line in open("/proc/self/smaps"):
    head = line.split()
    if not head[0].endswith(":"):
        inside = line.rstrip().endswith(path)
    elif inside and head[0] == "Pss:":
        pss += int(head[1])
print(pss, own_kib() - before, flush=True)
sys.stdin.readline()
"""


def write_model(path: Path, layers: int, size: int) -> int:
    """A GGUF file of `layers` square Q4_K weights; returns their bytes."""
    kind = type_by_name("Q4_K")
    writer = gguf.GGUFWriter(path, "flux")
    for index in range(layers):
        blocks = tame_blocks(kind, size * size, seed=index).view(size, -1)
        writer.add_tensor(f"{index}.weight", blocks.numpy(), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return layers * kind.size_bytes(size * size)


def shares(path: Path, layers: int, size: int, processes: int) -> list[tuple[int, int]]:
    """(Pss of the file, private memory) in KiB for each of the processes, all of them holding the model."""
    command = [sys.executable, "-c", CHILD, str(path), str(layers), str(size)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    pipes = [(child.stdin, child.stdout) for child in children]
    for _, out in pipes:
        assert out is not None
        assert out.readline() == "ready\n"
    found = []
    for into, out in pipes:
        assert into is not None
        assert out is not None
        into.write("\n")
        into.flush()
        pss, own = out.readline().split()
        found.append((int(pss), int(own)))
    for child in children:
        child.communicate("\n")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the file, measure one process and several, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        file_mib = write_model(path, options.layers, options.size) / (1 << 20)
        print(f"{time.strftime('%Y-%m-%d')}: {options.layers} Q4_K layers, {file_mib:.0f} MiB of weights")
        print(f"{'processes':>9}{'sum of Pss MiB':>16}{'of the weights':>16}{'own MiB each, at most':>24}")
        for processes in dict.fromkeys((1, options.processes)):
            found = shares(path, options.layers, options.size, processes)
            pss_mib = sum(pss for pss, _ in found) / 1024
            own_mib = max(own for _, own in found) / 1024
            print(f"{processes:>9}{pss_mib:>16.1f}{pss_mib / file_mib:>16.3f}{own_mib:>24.1f}", flush=True)


if __name__ == "__main__":
    main()
