"""`torchspan devices`: what this machine offers, and why not more."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from alloc_spec import human_seconds, human_size
from comfy_nodes.cli._exit import ExitCode, exits_with
from comfy_nodes.cli._output import print_findings, table
from device_placement import Hardware, PlacementError, diagnose, probe


def run(options: argparse.Namespace) -> ExitCode:
    """Print the devices, their links and the findings, as tables or JSON.

    Raises:
        CommandError: a device that torch names gives no memory.
    """
    with exits_with(ExitCode.REFUSED, PlacementError):
        hardware = probe()
        findings = diagnose()
    if options.json:
        document = {
            "hardware": json.loads(hardware.to_json()),
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        _print_devices(hardware)
        print_findings("Why these devices", findings)
    return ExitCode.OK


def _print_devices(hardware: Hardware) -> None:
    rows = []
    for device in hardware.devices:
        role = "computes" if device.name == hardware.compute else "donor"
        sizes = (device.total_bytes, device.free_bytes, device.reserve_bytes)
        rows.append([device.name, role, device.label, *(human_size(size) for size in sizes)])
    print(table(["device", "role", "name", "total", "free", "kept free"], rows, left=3))
    if hardware.links:
        links = [
            [
                f"{link.source} -> {link.target}",
                f"{link.gb_per_second:.1f}",
                human_seconds(link.latency_seconds),
                link.ingress,
                "yes" if link.verified else "no, through the host",
            ]
            for link in hardware.links
        ]
        print(f"\n{table(['link', 'GB/s', 'latency', 'shared with', 'direct'], links)}")
