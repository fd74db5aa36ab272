"""`torchspan explain`: what an allocation means, and what it comes to for a model on some devices."""

from __future__ import annotations

import argparse

import alloc_spec
from alloc_spec import AllocResolveError, AllocSpecError
from comfy_nodes.cli._arguments import DeviceArgument, is_auto
from comfy_nodes.cli._exit import CommandError, ExitCode, exits_with
from comfy_nodes.cli._machine import choose_compute, memory_of, suggests_devices


def run(options: argparse.Namespace) -> ExitCode:
    """Print the meaning of the allocation, and with `--model-size` its bytes.

    Raises:
        CommandError: the allocation cannot be read (2), or not be kept on these devices (1).
    """
    devices: list[DeviceArgument] = options.device
    model_bytes: int | None = options.model_size
    if model_bytes is None and (devices or options.compute is not None):
        raise CommandError(
            "--device and --compute matter only for a model of known size; add --model-size, for example 11.8gb",
            exit_code=ExitCode.USAGE,
        )
    if is_auto(options.spec):
        raise CommandError(
            '"auto" leaves the choice to Torchspan, and what it comes to depends on the model: `torchspan plan FILE` '
            'shows it; what fits on one device and the rest elsewhere is "cuda:0,auto;cpu,*"',
            exit_code=ExitCode.USAGE,
        )
    with exits_with(ExitCode.USAGE, AllocSpecError):
        spec = alloc_spec.parse(options.spec)
    print(alloc_spec.explain(spec))
    if model_bytes is not None:
        memory = memory_of(devices)
        compute = choose_compute(options.compute, spec, tuple(memory))
        # Both are AllocSpecErrors: what the devices refuse differs from what cannot be read.
        with (
            exits_with(ExitCode.USAGE, AllocSpecError),
            exits_with(ExitCode.REFUSED, AllocResolveError),
            suggests_devices(devices),
        ):
            budget = alloc_spec.resolve(spec, model_bytes=model_bytes, devices=memory, compute_device=compute)
        print()
        print(budget.explain())
        if compute is not None and budget.bytes_for(compute) < model_bytes:
            print(f"slots for streaming to {compute} come on top; torchspan plan counts them, from a model's file")
    return ExitCode.OK
