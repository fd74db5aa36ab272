"""`torchspan pack` and `torchspan unpack`: bf16 files at about 70 % of their bytes, and back bit for bit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from alloc_spec import human_size
from block_discovery import BlockDiscoveryError
from comfy_nodes.cli._exit import CommandError, ExitCode, check_target, exits_with
from comfy_nodes.cli._output import dots
from device_placement.packed import FileReport, PackedError, pack_file, unpack_file

ENDING = ".safetensors"
PACKED_ENDING = ".w3.safetensors"
DOTS = 20


def run_pack(options: argparse.Namespace) -> ExitCode:
    """Write a packed copy of a safetensors file.

    Raises:
        CommandError: the file cannot be read, is damaged or packed already, or the new one cannot be written (1).
    """
    source = Path(options.file)
    target = Path(options.out) if options.out else source.with_name(_stem(source, ENDING) + PACKED_ENDING)
    report = _converted(source, target, options.on, pack_file, "packing")
    if not report.packed:
        print(f"{target}: no tensor got smaller; keep {source} and remove this copy")
        return ExitCode.OK
    share = f"{100 * report.target_bytes / report.source_bytes:.1f} %"
    print(f"{target}: {report.packed} of {report.tensors} tensors packed, {_sizes(report)} ({share})")
    return ExitCode.OK


def run_unpack(options: argparse.Namespace) -> ExitCode:
    """Write the file that was packed.

    Raises:
        CommandError: the file cannot be read, is damaged or not packed, or the new one cannot be written (1).
    """
    source = Path(options.file)
    target = Path(options.out) if options.out else source.with_name(_stem(source, PACKED_ENDING) + ENDING)
    report = _converted(source, target, options.on, unpack_file, "unpacking")
    print(f"{target}: {report.packed} of {report.tensors} tensors unpacked, {_sizes(report)}")
    return ExitCode.OK


def _converted(
    source: Path, target: Path, device: str | None, convert: Callable[..., FileReport], doing: str
) -> FileReport:
    check_target(target)
    place = _device(device)
    dot = dots(f"{doing} {source} on {place}")
    shown = 0

    def progress(done: int, total: int) -> None:
        nonlocal shown
        while shown < DOTS * done // max(total, 1):
            dot(shown)
            shown += 1

    where = "encode_on" if convert is pack_file else "decode_on"
    try:
        with exits_with(ExitCode.REFUSED, BlockDiscoveryError, PackedError, OSError):
            return convert(source, target, progress=progress, **{where: place})
    finally:
        print()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise CommandError(f"device {name!r} cannot be used here ({reason}); see `torchspan devices`") from error


def _stem(path: Path, ending: str) -> str:
    """The name without its ending, which may be another one."""
    return path.name.removesuffix(ending) if path.name.endswith(ending) else path.stem


def _sizes(report: FileReport) -> str:
    return f"{human_size(report.source_bytes)} -> {human_size(report.target_bytes)}"
