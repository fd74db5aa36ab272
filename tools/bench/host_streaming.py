"""A Flux larger than its share of a GPU inside the real ComfyUI: the host's own offloading against ours, one process.

Usage: python tools/bench/host_streaming.py [--comfyui PATH] [--double 4] [--single 8] [--resident 0.5] [--side 128]

Every way runs the same model of the host's own class, with the same bfloat16 weights on the same input; its output must
equal that of the resident model. Ways:

resident         the stock classic patcher, everything on the GPU
stock, in part   the stock classic patcher, allowed as much memory for weights as the plans below do
cast, POLICY     our patcher: the host's casts copy the weights of donors' layers; POLICY chose those layers
engine, stripe   the streaming engine of device-placement on a plan of the same size, instead of the host's casts
cast, as much    the casts, with as much more of the model on the GPU as the engine's peak was above theirs

A pass is one forward of the diffusion model; its time is the median after two to warm up. "overlap" is max(C, D) / P: C
a resident pass, D the time the streamed bytes take on the link as probed, P the pass.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from alloc_spec import AllocationSpec, Budget, Bytes, Entry, Rest
from block_discovery import discover
from comfy_nodes.host import PlacementRequest
from device_placement import Hardware, Policy, place, plan
from get_comfyui import find_comfyui

GIB = 1 << 30
WARM_PASSES = 2
POLICIES: tuple[Policy, ...] = ("stripe", "interleave", "contiguous")
Weights = dict[str, torch.Tensor]
Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way, measured.

    Attributes:
        way: its name.
        kept_bytes: of the model's weights, on the GPU during all passes.
        seconds: of a pass.
        peak_bytes: most memory allocated on the GPU.
        is_equal: its output is that of the resident model.
    """

    way: str
    kept_bytes: int
    seconds: float
    peak_bytes: int
    is_equal: bool


@dataclass(slots=True, kw_only=True)
class Bench:
    """What all ways share, and what was measured."""

    weights: Weights
    inputs: Inputs
    device: torch.device
    name: str
    kept_bytes: int
    hardware: Hardware
    passes: int
    rows: list[Row] = field(default_factory=list)
    expected: torch.Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """The whole model."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    def measure(self, way: str, patcher: Any, kept_bytes: int) -> Row:
        """Time the passes of one way."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(WARM_PASSES + self.passes):
            begin = time.perf_counter()
            output = forward(patcher, self.inputs)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        if self.expected is None:
            self.expected = output
        row = Row(
            way=way,
            kept_bytes=kept_bytes,
            seconds=statistics.median(seconds[WARM_PASSES:]),
            peak_bytes=torch.cuda.max_memory_allocated(),
            is_equal=torch.equal(output, self.expected),
        )
        self.rows.append(row)
        return row

    def run(self) -> None:
        """All ways, one after the other."""
        management = host("comfy.model_management")
        with self.model() as patcher:
            management.load_models_gpu([patcher], force_full_load=True)
            self.measure("resident", patcher, self.size_bytes)
        with self.model() as patcher:
            patcher.partially_load(self.device, self.kept_bytes)
            self.measure("stock, in part", patcher, self.kept_bytes)
        stripe, *_ = [self.cast(f"cast, {policy}", policy, self.kept_bytes) for policy in POLICIES]
        with self.model() as patcher:
            engine = self.stream(patcher)
        more_bytes = max(0, engine.peak_bytes - stripe.peak_bytes)
        self.cast("cast, as much", "stripe", min(self.size_bytes, self.kept_bytes + more_bytes))

    def cast(self, way: str, policy: Policy, kept_bytes: int) -> Row:
        """Our patcher for a fresh model, and the host's casts."""
        from comfy_nodes.host.placing._distribute import distribute
        from comfy_nodes.host.placing._prepare import prepare

        kept = Entry(device=self.name, amount=Bytes(size_bytes=kept_bytes))
        spec = AllocationSpec(entries=(kept, Entry(device="cpu", amount=Rest())))
        request = PlacementRequest(compute_device=self.name, allocation=spec, policy=policy)
        with self.model() as patcher:
            placed = distribute(patcher, prepare([], request, subject="flux"), prefix="diffusion_model.")[0]
            host("comfy.model_management").load_models_gpu([placed])
            row = self.measure(way, placed, kept_bytes)
            del placed
        return row

    def stream(self, patcher: Any) -> Row:
        """The engine on the network inside the model."""
        network = patcher.model.diffusion_model
        tree = discover(network)
        amounts = {self.name: self.kept_bytes, "cpu": tree.size_bytes - self.kept_bytes}
        budget = Budget(order=(self.name, "cpu"), amounts=amounts, compute_device=self.name)
        handle = place(network, plan(tree, budget, self.hardware))
        row = self.measure("engine, stripe", patcher, self.kept_bytes)
        handle.remove()
        return row

    @contextmanager
    def model(self) -> Iterator[Any]:
        """A fresh model of the host in its memory; everything is given back afterwards."""
        options = {"load_device": self.device, "offload_device": torch.device("cpu")}
        patcher = host("comfy.sd").load_diffusion_model_state_dict(dict(self.weights), model_options=options)
        try:
            yield patcher
        finally:
            patcher.detach()
            host("comfy.model_management").unload_all_models()
            del patcher
            gc.collect()
            torch.cuda.empty_cache()


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description="Offloading inside ComfyUI: the host's way against ours.")
    parser.add_argument("--comfyui", type=Path, default=find_comfyui(), help="checkout of ComfyUI")
    parser.add_argument("--double", type=int, default=4, help="two-stream blocks")
    parser.add_argument("--single", type=int, default=8, help="one-stream blocks")
    parser.add_argument("--side", type=int, default=128, help="of the latent")
    parser.add_argument("--resident", type=float, default=0.5, help="share of the model that stays on the GPU")
    parser.add_argument("--passes", type=int, default=8)
    options = parser.parse_args()
    if options.comfyui is None or not torch.cuda.is_available():
        parser.error("this needs a checkout of ComfyUI (tools/get_comfyui.py) and a CUDA device")
    sys.path.insert(0, str(options.comfyui))
    sys.argv = ["main.py", "--disable-dynamic-vram"]
    host("comfy.options").enable_args_parsing()
    with torch.inference_mode():
        bench = prepare(options)
        bench.run()
    show(bench)


def prepare(options: argparse.Namespace) -> Bench:
    """The model, the input and the machine."""
    device = host("comfy.model_management").get_torch_device()
    from comfy_nodes.host.app._machine import machine, name_of

    weights = flux_weights(options.double, options.single)
    name = name_of(device)
    return Bench(
        weights=weights,
        inputs=flux_inputs(options.side, device),
        device=device,
        name=name,
        kept_bytes=int(sum(tensor.nbytes for tensor in weights.values()) * options.resident),
        hardware=machine(name, ("cpu",)),
        passes=options.passes,
    )


def show(bench: Bench) -> None:
    """The table."""
    resident = bench.rows[0].seconds
    rate = bench.hardware.link("cpu", bench.name).gb_per_second
    print(
        f"{torch.cuda.get_device_name(bench.device)}, torch {torch.__version__}; {bench.size_bytes / GIB:.2f} GiB of "
        f"weights; {bench.inputs[0].shape[-1] ** 2 // 4} image tokens; link {rate:.1f} GB/s"
    )
    print(f"{'way':16}{'on the GPU':>12}{'ms a pass':>11}{'to resident':>13}{'overlap':>9}{'peak GiB':>10}  output")
    for row in bench.rows:
        bound = max(resident, (bench.size_bytes - row.kept_bytes) / (rate * 1e9))
        print(
            f"{row.way:16}{row.kept_bytes / bench.size_bytes:12.0%}{row.seconds * 1e3:11.1f}"
            f"{row.seconds / resident:13.2f}{bound / row.seconds:9.2f}{row.peak_bytes / GIB:10.2f}"
            f"  {'equal' if row.is_equal else 'DIFFERS'}"
        )


def host(module: str) -> Any:
    """A module of the host."""
    return importlib.import_module(module)


def flux_weights(double: int, single: int) -> Weights:
    """Random weights of a Flux with fewer blocks."""
    with torch.device("meta"):
        model = host("comfy.ldm.flux.model").Flux(
            in_channels=16,
            out_channels=16,
            vec_in_dim=768,
            context_in_dim=4096,
            hidden_size=3072,
            mlp_ratio=4.0,
            num_heads=24,
            depth=double,
            depth_single_blocks=single,
            axes_dim=[16, 56, 56],
            theta=10000,
            patch_size=2,
            qkv_bias=True,
            guidance_embed=True,
            txt_ids_dims=[],
            dtype=torch.bfloat16,
            operations=host("comfy.ops").disable_weight_init,
        )
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = {}
    for name, tensor in model.state_dict().items():
        values = noise.repeat(-(-tensor.numel() // noise.numel()))[: tensor.numel()].view(tensor.shape)
        spread = 0.5 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 0.1
        weights[name] = (values * spread + float(name.endswith("scale"))).contiguous()
    return weights


def flux_inputs(side: int, device: torch.device) -> Inputs:
    """Latent [1, 16, side, side], time, text [1, 512, 4096], pooled text [1, 768], guidance."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    half, guidance = torch.full((1,), 0.5, device=device), torch.full((1,), 3.5, device=device).bfloat16()
    return random(1, 16, side, side), half, random(1, 512, 4096), random(1, 768), guidance


def forward(patcher: Any, inputs: Inputs) -> torch.Tensor:
    """One pass."""
    return torch.as_tensor(patcher.model.diffusion_model(*inputs))


if __name__ == "__main__":
    main()
