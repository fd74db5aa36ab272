"""What `soak.py` mixes: an operation or two of every package, each of which checks its own result."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "gguf-loader" / "tests"))

import fuzz_alloc_spec
import fuzz_gguf
import gguf_bytes
import gguf_mutations
from soak_operation import Operation

import alloc_spec
from block_discovery import BlockDiscoveryError, BlockTree, discover, discover_file
from device_placement import (
    Device,
    EmulatedBackend,
    Hardware,
    Link,
    PlacementError,
    PlacementPlan,
    place,
    plan,
    predict,
)
from device_placement.packed import PackedWeight
from ray_parallel.sequence import Attn, Mesh, Plan, Region, Seq, ThreadComm, ThreadTeam, parallelize

WIDTH = 48
SPLIT = Plan(regions=[Region(blocks="blocks", args={"x": Seq("v")}, out=Seq("v"), attn={"": Attn("v", "v")})])


class Block(nn.Module):
    """Attention and a layer: what a plan can split and a placement can move."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and add, [B, S, WIDTH]."""
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(attended)  # type: ignore[no-any-return]


class Model(nn.Module):
    """Blocks one after the other."""

    def __init__(self, blocks: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks, [B, S, WIDTH]."""
        for block in self.blocks:
            x = block(x)
        return x


class Interruption(BaseException):
    """Like the ones that end a run in the middle: no Exception."""


def operations(*, ray: bool) -> list[Operation]:
    """All operations; those of Ray start a cluster of their own and are rare."""
    listed = [
        Operation(name="allocation", weight=4, run=_allocation),
        Operation(name="header", weight=2, run=_header),
        Operation(name="plan", weight=3, run=_plan),
        Operation(name="place", weight=4, run=_place),
        Operation(name="gguf", weight=4, run=_gguf),
        Operation(name="packed bf16", weight=2, run=_packed),
        Operation(name="threads", weight=3, run=_threads),
    ]
    return [*listed, Operation(name="ray", weight=0.004, run=_ray)] if ray else listed


def _check(right: bool, what: str) -> None:
    if not right:
        raise AssertionError(what)


def _allocation(rng: random.Random, folder: Path) -> str:
    for _ in range(20):
        made = rng.choice(
            [fuzz_alloc_spec.entries, fuzz_alloc_spec.wire, fuzz_alloc_spec.mutated, fuzz_alloc_spec.soup]
        )
        outcome = fuzz_alloc_spec.outcome(made(rng))
    return outcome


def _machine(rng: random.Random, model_bytes: int) -> Hardware:
    free = [rng.randrange(model_bytes // 8, 2 * model_bytes) for _ in range(2)] + [4 * model_bytes]
    names = ("card:0", "card:1", "cpu")
    return Hardware(
        compute="card:0",
        devices=tuple(
            Device(name=name, total_bytes=size, free_bytes=size) for name, size in zip(names, free, strict=True)
        ),
        links=tuple(
            Link(source=name, target="card:0", gb_per_second=rng.choice([1.0, 50.0])) for name in ("card:1", "cpu")
        ),
    )


def _header(rng: random.Random, folder: Path) -> str:
    path = folder / "model.safetensors"
    tensors = {
        f"blocks.{index}.{name}": torch.zeros(rng.randrange(1, 9), 8, dtype=rng.choice([torch.float32, torch.bfloat16]))
        for index in range(rng.randrange(1, 9))
        for name in ("up.weight", "down.weight")
    }
    save_file(tensors, path)
    tree = discover_file(path)
    _check(tree.size_bytes == sum(tensor.nbytes for tensor in tensors.values()), "bytes of the header")
    _check(BlockTree.from_json(tree.to_json()) == tree, "a tree through JSON")
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 5)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        discover_file(path)
    except BlockDiscoveryError as error:
        return type(error).__name__
    return "accepted"


def _plan(rng: random.Random, folder: Path) -> str:
    tree = discover(Model(rng.randrange(1, 9), 0))
    hardware = _machine(rng, tree.size_bytes)
    spec = rng.choice(
        ["card:0,40%;cpu,*", "card:0,20%;card:1,30%;cpu,*", "cpu,*", "auto", "card:0,auto;card:1,auto;cpu,*"]
    )
    try:
        made = plan(tree, spec, hardware)
    except (PlacementError, alloc_spec.AllocSpecError) as error:
        return type(error).__name__
    _check(sum(made.bytes_on(name) for name in ("card:0", "card:1", "cpu")) == tree.size_bytes, "bytes of the plan")
    _check(PlacementPlan.from_json(made.to_json()) == made, "a plan through JSON")
    slow = predict(made, hardware, compute_seconds=0.001)
    _check(slow.slowdown is not None and slow.slowdown >= 1, "a placement never speeds a pass up")
    damaged = json.dumps(
        {**json.loads(made.to_json()), rng.choice(["units", "slots", "compute"]): rng.choice([None, -1, []])}
    )
    try:
        PlacementPlan.from_json(damaged)
    except PlacementError as error:
        return f"damaged: {type(error).__name__}"
    return "planned"


def _place(rng: random.Random, folder: Path) -> str:
    model = Model(rng.randrange(2, 6), rng.randrange(100)).eval().requires_grad_(False)
    x = torch.randn(1, rng.randrange(1, 9), WIDTH)
    expected = model(x)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    tree = discover(model)
    size = tree.size_bytes
    hardware = dataclasses.replace(
        _machine(rng, size),
        devices=tuple(
            Device(name=name, total_bytes=4 * size, free_bytes=4 * size) for name in ("card:0", "card:1", "cpu")
        ),
    )
    made = plan(tree, rng.choice(["card:0,30%;cpu,*", "card:0,10%;card:1,30%;cpu,*", "cpu,*"]), hardware)
    outcome = "ran"
    with place(model, made, backend=EmulatedBackend(hardware.links)), torch.no_grad():
        _check(torch.equal(model(x), expected), "a placed model")
        if rng.random() < 0.5:
            error = rng.choice([Interruption, KeyboardInterrupt, ValueError])

            def fail(*_: Any) -> None:
                raise error

            handle = rng.choice(list(model.blocks)).register_forward_pre_hook(fail)
            try:
                model(x)
            except error:
                outcome = f"survived {error.__name__}"
            handle.remove()
        _check(torch.equal(model(x), expected), "a placed model, once more")
    for name, (tensor, values) in before.items():
        _check(torch.equal(tensor, values), f"{name} of the caller")
        _check(torch.equal(model.state_dict()[name], values), f"{name} after the placement")
    return outcome


def _gguf(rng: random.Random, folder: Path) -> str:
    path = folder / "model.gguf"
    whole = gguf_bytes.rich().bytes()
    path.write_bytes(whole)
    _check(fuzz_gguf.use(path) == "accepted", "a sound GGUF file")
    path.write_bytes(gguf_mutations.mutate(whole, rng))
    return fuzz_gguf.use(path)


def _packed(rng: random.Random, folder: Path) -> str:
    count = rng.randrange(1, 5000)
    dense = (torch.randn(count) * 10.0 ** rng.randrange(-6, 6)).to(torch.bfloat16)
    if rng.random() < 0.3:
        dense = torch.randint(-(2**15), 2**15, (count,), dtype=torch.int16).view(torch.bfloat16)
    packed = PackedWeight.of(dense)
    if packed is None:
        return "stays dense"
    _check(torch.equal(packed.dense().view(torch.int16), dense.view(torch.int16)), "a packed weight")
    copied = copy.deepcopy(packed)
    _check(torch.equal(copied.dense().view(torch.int16), dense.view(torch.int16)), "a copy of a packed weight")
    return "packed"


def _threads(rng: random.Random, folder: Path) -> str:
    ranks, seed = rng.randrange(2, 5), rng.randrange(100)
    kind: Any = rng.choice(["ulysses", "ring", "all_gather"])
    models = [Model(2, seed).eval() for _ in range(ranks)]
    x = torch.randn(1, rng.randrange(ranks, 40), WIDTH)
    stop = rng.choice([None, None, Interruption, KeyboardInterrupt])
    at = rng.randrange(ranks)

    def forward(comm: ThreadComm) -> Tensor:
        handle = parallelize(models[comm.rank], SPLIT, Mesh.of(comm, kind))
        try:
            result: Tensor = models[comm.rank](x)
            if stop is not None and comm.rank == at:
                raise stop
            comm.agree(b"done")
            return result
        finally:
            handle.remove()

    with torch.inference_mode():
        expected = models[0](x)
        with ThreadTeam([None] * ranks, timeout_s=60) as team:
            try:
                results = team.run(forward)
            except (Interruption, KeyboardInterrupt) as error:
                _check(torch.equal(models[at](x), expected), "a model after an interrupted run")
                return f"survived {type(error).__name__}"
        for result in results:
            _check(float((result - expected).abs().max() / expected.abs().max()) < 2e-6, f"{kind} over {ranks} threads")
    return f"{kind} x {ranks}"


def _ray(rng: random.Random, folder: Path) -> str:
    from bench_tasks import TinyModel

    from ray_parallel.workers import GroupOptions, Recipe, SharedWeights, WorkerGroup, start_cluster

    path = folder / "model.safetensors"
    save_file(TinyModel().state_dict(), path)
    recipe = Recipe(factory="bench_tasks:build", weights=SharedWeights.from_file(path))
    options = GroupOptions(workers=2, device="cpu")
    with start_cluster(workers=2) as cluster, WorkerGroup(cluster, recipe, options) as group:
        _check(list(group.call("bench_tasks:nothing")) == [0, 1], "ranks of the workers")
    return "two workers"
