"""Packed bf16: ratio against the entropy bound, encoding and decoding against a copy, a streamed forward against dense.

Usage: python tools/bench/packed.py [--device cpu] [--size 2048] [--repeats 7] [--weights FILE.safetensors ...]
       [--link GBPS]

Three tables, and the name of the device that they are from:
1. Ratio of several kinds of weights. All but those of `--weights` are made here: eight distributions, and a small
   network that is trained for some seconds. The bound is what sign, mantissa and the entropy of the exponents take.
2. GB/s of dense bytes: a copy of the dense weights, encoding, decoding by each decoder that works here, and decoding
   as a share of the copy. Before that, whether every bit pattern survives on this device. The gate for claiming a
   speed is decoding at 60 % of a copy on a GPU.
3. A forward of a streamed model, dense and packed: bytes sent, seconds, and whether both give the same bits. On the CPU
   the link is emulated (`--link`, by default so slow that it limits); on CUDA it is that of the machine.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from gguf_cuda import Timer
from torch import Tensor, nn

from block_discovery import discover
from device_placement import Backend, Device, EmulatedBackend, Hardware, Link, place, plan
from device_placement.packed import Decoder, Layout, PackedFile, decode_with, encode, pack_model

GATE = 0.6
BLOCKS = 12


def kinds(size: int, files: Sequence[str]) -> Iterator[tuple[str, list[Tensor]]]:
    """Names and bf16 tensors of the first table."""
    torch.manual_seed(0)
    normal, rows, columns = torch.randn(size, size), torch.randn(size, 1), torch.randn(1, size)
    student = torch.distributions.StudentT(5.0).sample((size, size))
    laplace = torch.distributions.Laplace(0.0, 0.02).sample((size, size))
    made = {
        "normal, 0.02": normal * 0.02,
        "normal, 1 / sqrt(size)": normal / size**0.5,
        "Student's t, 5 degrees": student * 0.02,
        "Laplace": laplace,
        "uniform": (torch.rand(size, size) * 2 - 1) / size**0.5,
        "normal, rows lognormal 0.5": normal * 0.02 * torch.exp(rows * 0.5),
        "normal, rows lognormal 1": normal * 0.02 * torch.exp(rows),
        "normal, rows and columns 0.7": normal * 0.02 * torch.exp(rows * 0.7) * torch.exp(columns * 0.7),
    }
    for name, weights in made.items():
        yield f"made: {name}", [weights.bfloat16()]
    yield "trained here: 3-layer network", trained()
    for path in files:
        with PackedFile(path) as file:
            names = [name for name in file if file.header.codes.get(name) in ("BF16", "F16", "F32")]
            yield Path(path).name, [tensor.bfloat16() for tensor in map(file.__getitem__, names) if tensor.ndim >= 2]


def trained(width: int = 256, steps: int = 200) -> list[Tensor]:
    """The matrices of a small network after some seconds of training on a made task."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64))
    target = torch.randn(64, 64) / 8
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(steps):
        x = torch.randn(256, 64)
        loss = (net(x) - torch.tanh(x @ target)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [parameter.detach().bfloat16() for parameter in net.parameters() if parameter.ndim == 2]


def entropy_bound(tensors: Sequence[Tensor]) -> float:
    """Share of bf16's bytes that sign, mantissa and the entropy of the exponents take, one code a tensor."""
    bits = 0.0
    for tensor in tensors:
        exponents = (tensor.reshape(-1).view(torch.int16) >> 7) & 0xFF
        share = torch.bincount(exponents).double() / tensor.numel()
        entropy = -(share[share > 0] * share[share > 0].log2()).sum()
        bits += tensor.numel() * (8 + float(entropy))
    return bits / (16 * sum(tensor.numel() for tensor in tensors))


def print_ratios(size: int, files: Sequence[str]) -> None:
    """The first table."""
    print(f"{'weights':<36}{'millions':>9}{'bound %':>9}{'w3 %':>7}{'escapes %':>11}")
    for name, tensors in kinds(size, files):
        tensors = [tensor for tensor in tensors if tensor.numel()]
        packed = dense = escapes = 0
        for tensor in tensors:
            encoded = encode(tensor)
            dense += tensor.nbytes
            packed += tensor.nbytes if encoded is None else encoded[0].nbytes
            escapes += 0 if encoded is None else encoded[1].escapes
        weights = dense // 2
        shown = f"{name:<36}{weights / 1e6:>9.2f}{100 * entropy_bound(tensors):>9.1f}{100 * packed / dense:>7.1f}"
        print(f"{shown}{100 * escapes / weights:>11.2f}")


def is_exact(device: torch.device, decoders: Sequence[Decoder]) -> bool:
    """Whether all bit patterns, among weights that make packing pay, survive encoding and decoding on a device."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    dense = torch.cat([patterns, torch.full((300_003,), 0.5).bfloat16()]).to(device)
    buffer, layout = _encoded(dense)
    return all(
        torch.equal(decode_with(buffer, layout, decoder=decoder).view(torch.int16), dense.view(torch.int16))
        for decoder in decoders
    )


def _encoded(dense: Tensor) -> tuple[Tensor, Layout]:
    encoded = encode(dense)
    assert encoded is not None
    return encoded


def print_rates(device: torch.device, size: int, repeats: int) -> None:
    """The second table."""
    decoders: tuple[Decoder, ...] = ("eager", "triton") if device.type == "cuda" else ("eager",)
    print(f"\nevery bit pattern survives by {' and '.join(decoders)}: {is_exact(device, decoders)}")
    dense = (torch.randn(size, size) * 0.02).bfloat16().to(device)
    out = torch.empty_like(dense)
    buffer, layout = _encoded(dense)
    timer = Timer(device, repeats)
    timed: dict[str, Callable[[], object]] = {"copy": partial(out.copy_, dense), "encode": partial(encode, dense)}
    for decoder in decoders:
        timed[decoder] = partial(decode_with, buffer, layout, out=out, decoder=decoder)
    least = timer.least(timed)
    rates = {name: dense.nbytes / milliseconds / 1e6 for name, milliseconds in least.items()}
    print(f"{'GB/s of dense bytes':<22}{'rate':>9}{'of copy':>9}")
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>9.2f}{rate / rates['copy']:>9.3f}")
    best = max(rates[decoder] for decoder in decoders) / rates["copy"]
    if device.type == "cuda":
        print(f"gate, decoding at {GATE:.0%} of a copy: {'met' if best >= GATE else 'missed'} ({best:.0%})")
    else:
        print("the gate is for GPUs; `torchspan plan --decode-gbps` takes the rate of decoding")


class Block(nn.Module):
    """A residual layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like `x`."""
        y: Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + y


def print_streaming(device: torch.device, width: int, repeats: int, link: float) -> None:
    """The third table."""
    torch.manual_seed(0)
    dense = nn.Sequential(*[Block(width) for _ in range(BLOCKS)]).bfloat16().eval().requires_grad_(False)
    packed = copy.deepcopy(dense)
    pack_model(packed, encode_on=device)
    x = torch.randn(1, 64, width).bfloat16()
    compute = "cuda:0" if device.type == "cuda" else "emulated:0"
    backend: Backend | None = None
    links = (Link(source="cpu", target=compute, gb_per_second=link),)
    if device.type != "cuda":
        backend = EmulatedBackend(links)
    memory = 1 << 40
    hardware = Hardware(
        compute=compute,
        devices=tuple(Device(name=name, total_bytes=memory, free_bytes=memory) for name in (compute, "cpu")),
        links=links,
    )
    resident = sum(parameter.nbytes for parameter in dense.parameters()) // 5
    found: list[Tensor] = []
    shown = "the machine's link" if backend is None else f"an emulated link of {link:g} GB/s"
    print(f"\n{'streamed over ' + shown:<44}{'MiB sent':>9}{'ms':>9}{'of dense':>9}")
    first = 0.0
    for name, model in (("dense", dense), ("packed", packed)):
        made = plan(discover(model), f"{compute},{resident / (1 << 20):.3f}mb;cpu,*", hardware)
        with torch.no_grad(), place(model, made, backend=backend) as handle:
            inputs = x.to(device)
            found.append(model(inputs).cpu())
            before = sum(handle.stats().copied_bytes.values())
            least = float("inf")
            for _ in range(repeats):
                start = time.perf_counter()
                model(inputs).cpu()
                least = min(least, time.perf_counter() - start)
            sent = (sum(handle.stats().copied_bytes.values()) - before) / repeats
        first = first or least
        print(f"{name:<44}{sent / (1 << 20):>9.1f}{least * 1e3:>9.1f}{least / first:>9.3f}")
    print(f"same bits: {torch.equal(found[0], found[1])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (default: cpu)")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the matrices (default: 2048)")
    parser.add_argument("--repeats", type=int, default=7, help="the least time of so many counts (default: 7)")
    parser.add_argument("--weights", nargs="*", default=(), metavar="FILE", help="safetensors files with real weights")
    parser.add_argument("--link", type=float, default=0.05, help="GB/s of the emulated link (default: 0.05)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = options.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {platform.system()}\n")
    print_ratios(options.size, options.weights)
    print_rates(device, options.size, options.repeats)
    print_streaming(device, max(64, options.size // 4), options.repeats, options.link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
