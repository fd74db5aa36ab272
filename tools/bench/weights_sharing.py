"""How weights reach several processes: time to share, time until a reader has them, and what it costs in memory.

Usage: python tools/bench/weights_sharing.py [--gib 0.25] [--readers 4]      (Linux only)

The peers are the ways that Ray offers: a dict of tensors through the object store, as most code does it, and the same
dict with RAY_ENABLE_ZERO_COPY_TORCH_TENSORS. Ours are `SharedWeights` by the store and by a mapped file. Each way gets
a new process and a new cluster, and readers that were started and had a tiny model before the clock; a reader is
ready when it has every tensor, and then touches every page. Memory is what all of it adds up to by the kernel's
account: the sum over the readers, Ray's server and the driver's shared memory of their proportional shares (Pss),
before and after, in units of the model. The mapped file counts as memory although it is page cache that the system may
take back. fp8 tensors are left out for the peers, which cannot send them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ray_parallel.workers import Cluster, SharedWeights, start_cluster

TENSORS = 334
SHARES = {torch.bfloat16: 0.6, torch.float8_e4m3fn: 0.3, torch.float32: 0.1}
SHARED = ("Pss_File", "Pss_Shmem")


class Reader:
    """An actor that receives weights one way or another."""

    def __init__(self) -> None:
        self.held: Mapping[str, torch.Tensor] = {}

    def pid(self) -> int:
        """Its process; answers once the actor is up."""
        return os.getpid()

    def receive_dict(self, refs: Sequence[Any]) -> float:
        """Get a plain dict."""
        import ray

        began = time.perf_counter()
        self.held = ray.get(refs[0])
        return time.perf_counter() - began

    def receive_shared(self, weights: SharedWeights) -> float:
        """Open shared weights."""
        began = time.perf_counter()
        self.held = weights.open(protected=True)
        return time.perf_counter() - began

    def touch(self) -> float:
        """Read from every page, and return a sum that only the right bytes give."""
        total = 0.0
        for tensor in self.held.values():
            total += tensor.reshape(-1).view(torch.uint8)[::4096].sum(dtype=torch.int64).item()
        return total


def state_dict(gib: float, *, fp8: bool) -> dict[str, torch.Tensor]:
    """A model of about `gib`: 60 % bf16, 30 % fp8, 10 % fp32, or bf16 in the place of fp8."""
    size = int(gib * 2**30 / TENSORS)
    tensors = {}
    for index in range(TENSORS):
        place, dtype = index / TENSORS, torch.bfloat16
        if place >= SHARES[torch.bfloat16]:
            dtype = torch.float8_e4m3fn if place < 1 - SHARES[torch.float32] else torch.float32
        if dtype == torch.float8_e4m3fn and not fp8:
            dtype = torch.bfloat16
        count = size // 64 * 64
        tensors[f"layer.{index}"] = torch.full((count,), index % 251, dtype=torch.uint8).view(dtype)
    return tensors


def proportional_bytes(pids: Sequence[int], server: int) -> int:
    """Sum of the Pss of the readers, and of what Ray's server and this process have of shared memory and files.

    The heap of this process is left out: it held the tensors before they were shared, and keeps what it freed.
    """
    total = 0
    for pid, fields in (*((pid, ("Pss",)) for pid in pids), *((pid, SHARED) for pid in (server, os.getpid()))):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.partition(":")[0] in fields:
                total += 1024 * int(line.split()[1])
    return total


def store_server(cluster: Cluster) -> int:
    """The process of Ray's object store."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"raylet/raylet" in command and str(cluster.folder).encode() in command:
                return int(entry.name)
    raise SystemExit("the process of Ray's object store was not found")


def put_dict(tensors: dict[str, torch.Tensor], cluster: Cluster) -> list[Any]:
    """The peers' way."""
    import ray

    return [ray.put(tensors)]


def put_shared(tensors: dict[str, torch.Tensor], cluster: Cluster) -> SharedWeights:
    """Ours, without a file."""
    return SharedWeights.from_tensors(tensors, room=cluster.room)


def put_file(tensors: dict[str, torch.Tensor], cluster: Cluster) -> SharedWeights:
    """Ours, with the file that a checkpoint is anyway; writing it is not counted."""
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    save_file(tensors, path)
    return SharedWeights.from_file(path)


@dataclass(frozen=True, slots=True)
class Way:
    """One row of the table: its name, what shares, what a reader does, and whether fp8 survives it."""

    name: str
    share: Callable[[dict[str, torch.Tensor], Cluster], Any]
    method: str
    fp8: bool
    environment: Mapping[str, str]


ZERO_COPY = {"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
WAYS = (
    Way("peer: dict of tensors through the store", put_dict, "receive_dict", False, {}),
    Way("peer: the same, zero-copy torch tensors", put_dict, "receive_dict", False, ZERO_COPY),
    Way("ours: SharedWeights by the store", put_shared, "receive_shared", True, {}),
    Way("ours: SharedWeights by a mapped file", put_file, "receive_shared", True, {}),
)


def measure(way: Way, readers: int, gib: float) -> tuple[float, float, float]:
    """(seconds to share, slowest reader's seconds, growth of memory in models)."""
    with start_cluster(workers=readers, shared_bytes=int(1.1 * gib * 2**30)) as cluster:
        import ray

        untyped: Any = ray
        paths = dict.fromkeys([str(Path(__file__).parent), *filter(None, sys.path)])
        variables = {"PYTHONPATH": os.pathsep.join(paths), **way.environment}
        remote = untyped.remote(num_cpus=0, runtime_env={"env_vars": variables})(Reader)
        actors = [remote.remote() for _ in range(readers)]
        pids, server = untyped.get([actor.pid.remote() for actor in actors]), store_server(cluster)
        tiny = way.share(state_dict(0.002, fp8=way.fp8), cluster)
        for actor in actors:
            untyped.get(getattr(actor, way.method).remote(tiny))
            untyped.get(actor.touch.remote())
        tensors = state_dict(gib, fp8=way.fp8)
        before = proportional_bytes(pids, server)
        began = time.perf_counter()
        shared = way.share(tensors, cluster)
        shared_seconds = time.perf_counter() - began
        if isinstance(shared, SharedWeights) and shared.mode == "file":
            began = time.perf_counter()
            shared = SharedWeights.from_file(shared.files[0].path)
            shared_seconds = time.perf_counter() - began
        del tensors
        seconds = [untyped.get(getattr(actor, way.method).remote(shared)) for actor in actors]
        if len({untyped.get(actor.touch.remote()) for actor in actors}) != 1:
            raise SystemExit("the readers read different bytes")
        grown = proportional_bytes(pids, server) - before
        if isinstance(shared, SharedWeights):
            shared.close()
            for file in shared.files:
                shutil.rmtree(Path(file.path).parent)
    return shared_seconds, max(seconds), grown / (gib * 2**30)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure each way in a separate process, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.25, help="size of the model (default: 0.25)")
    parser.add_argument("--readers", type=int, default=4, help="processes that read it (default: 4)")
    parser.add_argument("--way", type=int, choices=range(len(WAYS)), help="measure this way alone, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.way is not None:
        print(json.dumps(measure(WAYS[options.way], options.readers, options.gib)))
        return
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(f"{today}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{options.gib:g} GiB in {TENSORS} tensors, {options.readers} readers, one after the other")
    print(f"{'way':<42}{'share s':>9}{'reader s':>10}{'faster':>8}{'memory in models':>18}")
    first = None
    for index, way in enumerate(WAYS):
        command = [sys.executable, __file__, "--way", str(index), "--gib", str(options.gib)]
        command += ["--readers", str(options.readers)]
        environment = dict(os.environ) | dict(way.environment)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        shared, ready, grown = json.loads(done.stdout.splitlines()[-1])
        first = first or ready
        print(f"{way.name:<42}{shared:>9.3f}{ready:>10.4f}{first / ready:>7.0f}x{grown:>18.2f}", flush=True)


if __name__ == "__main__":
    main()
