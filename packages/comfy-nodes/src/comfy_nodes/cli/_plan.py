"""`torchspan plan`: where each byte of a file's model would live, and what that costs, from the header alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alloc_spec
from alloc_spec import AllocationSpec, AllocResolveError, AllocSpecError
from block_discovery import BlockTree
from comfy_nodes.cli._arguments import is_auto
from comfy_nodes.cli._exit import CommandError, ExitCode, check_target, exits_with
from comfy_nodes.cli._machine import hardware_for, suggests_devices
from comfy_nodes.cli._output import contents, warn
from comfy_nodes.cli._source import read_model
from device_placement import (
    Estimate,
    Hardware,
    PlacementError,
    PlacementPlan,
    plan,
    predict,
    render_svg,
    render_table,
)
from device_placement.packed import PackedPlan, plan_packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """All that the command found out.

    Attributes:
        file: the file asked about.
        tree: its model.
        spec: the allocation, asked for or chosen.
        hardware: the machine.
        placement: the plan.
        estimate: what it costs.
        packing: which units are packed and why; None where packing was not asked for.
        warnings: sentences about the file and the machine; those about the plan are in the plan.
    """

    file: Path
    tree: BlockTree
    spec: AllocationSpec
    hardware: Hardware
    placement: PlacementPlan
    estimate: Estimate
    packing: PackedPlan | None
    warnings: tuple[str, ...]


def run(options: argparse.Namespace) -> ExitCode:
    """Plan a file and print tables, or JSON.

    Raises:
        CommandError: the words contradict each other or the allocation cannot be read (2); the file, the machine or the
            budget do not allow it (1).
    """
    asked = _asked_spec(options)
    _check_packing(options)
    if options.svg is not None:
        check_target(Path(options.svg))
    tree, warnings = read_model(Path(options.file), options.prefix)
    hardware, notes = hardware_for(options.device, options.link, options.compute, asked)
    spec = asked or _spec_for(options, hardware)
    with (
        exits_with(ExitCode.USAGE, AllocSpecError),
        exits_with(ExitCode.REFUSED, AllocResolveError, PlacementError),
        suggests_devices(options.device),
    ):
        packing = _packing(options, tree, spec, hardware)
        if packing is None:
            placement = plan(tree, spec, hardware, policy=options.policy, slots=options.slots)
            estimate = predict(placement, hardware, compute_seconds=options.compute_seconds)
        else:
            placement, estimate = packing.plan, packing.estimate
    planned = Planned(
        file=Path(options.file),
        tree=tree,
        spec=spec,
        hardware=hardware,
        placement=placement,
        estimate=estimate,
        packing=packing,
        warnings=(*warnings, *notes),
    )
    for warning in planned.warnings:
        warn(warning)
    if options.json:
        print(json.dumps(_document(planned), indent=2))
    else:
        _print_tables(planned)
    if options.svg is not None:
        with exits_with(ExitCode.REFUSED, OSError):
            Path(options.svg).write_text(render_svg(placement), encoding="utf-8")
        print(f"picture: {options.svg}")
    return ExitCode.OK


def _check_packing(options: argparse.Namespace) -> None:
    """Refuse words about packing that go nowhere.

    Raises:
        CommandError: they contradict each other (2).
    """
    if options.pack == "never":
        for option, value in (("--packed-ratio", options.packed_ratio), ("--decode-gbps", options.decode_gbps)):
            if value is not None:
                raise CommandError(f"{option} is about packed units; add --pack always", exit_code=ExitCode.USAGE)
    if options.pack == "auto" and options.compute_seconds is None:
        raise CommandError(
            "--pack auto weighs decoding against the link; add --compute-seconds", exit_code=ExitCode.USAGE
        )


def _packing(
    options: argparse.Namespace, tree: BlockTree, spec: AllocationSpec, hardware: Hardware
) -> PackedPlan | None:
    if options.pack == "never":
        return None
    return plan_packed(
        tree,
        spec,
        hardware,
        pack=options.pack,
        packed_ratio=options.packed_ratio,
        decode_gb_per_second=options.decode_gbps,
        compute_seconds=options.compute_seconds,
        policy=options.policy,
        slots=options.slots,
    )


def _asked_spec(options: argparse.Namespace) -> AllocationSpec | None:
    """The allocation that was typed; None without one, or where it needs the machine to be complete."""
    if options.spec is None:
        if options.donor is not None and options.virtual_ram_gb is None:
            raise CommandError("--donor says where, but not how much; add --virtual-ram-gb", exit_code=ExitCode.USAGE)
        return None
    for option, value in (("--virtual-ram-gb", options.virtual_ram_gb), ("--donor", options.donor)):
        if value is not None:
            raise CommandError(
                f"--spec and {option} both say what lives where; keep one of them", exit_code=ExitCode.USAGE
            )
    if is_auto(options.spec):
        return None
    with exits_with(ExitCode.USAGE, AllocSpecError):
        return alloc_spec.parse(options.spec)


def _spec_for(options: argparse.Namespace, hardware: Hardware) -> AllocationSpec:
    """The allocation of the simple controls, or without them: as much as fits where it computes, the rest elsewhere."""
    if options.virtual_ram_gb is not None:
        with exits_with(ExitCode.USAGE, AllocSpecError):
            return alloc_spec.from_controls(
                compute_device=hardware.compute,
                virtual_ram_gb=options.virtual_ram_gb,
                donor_device="cpu" if options.donor is None else options.donor,
            )
    if not hardware.donors:
        return alloc_spec.parse(f"{hardware.compute},*")
    donor = "cpu" if "cpu" in hardware.donors else hardware.donors[-1]
    return alloc_spec.parse(f"{hardware.compute},auto;{donor},*")


def _document(planned: Planned) -> dict[str, Any]:
    document = {
        "file": str(planned.file),
        "model_bytes": planned.tree.size_bytes,
        "spec": str(planned.spec),
        "hardware": json.loads(planned.hardware.to_json()),
        "plan": json.loads(planned.placement.to_json()),
        "estimate": json.loads(planned.estimate.to_json()),
        "warnings": [*planned.warnings, *planned.placement.warnings],
    }
    packing = planned.packing
    if packing is not None:
        document["packing"] = {
            "units": list(packing.units),
            "dense_bytes": packing.dense_bytes,
            "packed_bytes": packing.packed_bytes,
            "decode_seconds": packing.decode_seconds,
            "explanation": list(packing.explanation),
        }
    return document


def _print_tables(planned: Planned) -> None:
    print(f"{planned.file}: {contents(planned.tree)}; no weight was read", end="\n\n")
    print(alloc_spec.explain(planned.spec), end="\n\n")
    print(render_table(planned.placement, planned.hardware, planned.estimate))
    if planned.packing is not None:
        print("\n".join(planned.packing.explanation))
