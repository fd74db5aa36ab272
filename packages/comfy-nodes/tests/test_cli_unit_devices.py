"""Laws of `torchspan devices`: everything measured and found is printed, in words and as JSON."""

from __future__ import annotations

import json

import pytest

from comfy_nodes.cli import _devices, main
from comfy_nodes.cli._exit import ExitCode
from device_placement import Device, Finding, Hardware, Link, PlacementError

GIB = 1 << 30
BOX = Hardware(
    compute="cuda:0",
    devices=(
        Device(name="cuda:0", total_bytes=24 * GIB, free_bytes=22 * GIB, reserve_bytes=2 * GIB, label="Big Card"),
        Device(name="cuda:1", total_bytes=12 * GIB, free_bytes=11 * GIB, label="Small Card"),
        Device(name="cpu", total_bytes=64 * GIB, free_bytes=50 * GIB),
    ),
    links=(
        Link(source="cuda:1", target="cuda:0", gb_per_second=9.5, verified=False),
        Link(source="cpu", target="cuda:0", gb_per_second=25, latency_seconds=1.5e-5),
    ),
)
FINDINGS = (
    Finding(level="problem", subject="driver", message="too old", remedy="update it"),
    Finding(level="ok", subject="torch", message="built for CUDA"),
)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_devices, "probe", lambda: BOX)
    monkeypatch.setattr(_devices, "diagnose", lambda: FINDINGS)


@pytest.mark.usefixtures("box")
def test_devices_links_and_findings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        "device  role      name         total    free  kept free",
        "------  --------  ----------  ------  ------  ---------",
        "cuda:0  computes  Big Card    24 GiB  22 GiB      2 GiB",
        "cuda:1  donor     Small Card  12 GiB  11 GiB    0 bytes",
        "cpu     donor                 64 GiB  50 GiB    0 bytes",
        "",
        "link              GB/s  latency  shared with                direct",
        "----------------  ----  -------  -----------  --------------------",
        "cuda:1 -> cuda:0   9.5    20 us         host  no, through the host",
        "cpu -> cuda:0     25.0    15 us         host                   yes",
        "",
        "== Why these devices ==",
        "problem  driver: too old",
        "         -> update it",
        "ok       torch: built for CUDA",
    ]


@pytest.mark.usefixtures("box")
def test_json_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert Hardware.from_json(json.dumps(document["hardware"])) == BOX
    assert tuple(Finding(**finding) for finding in document["findings"]) == FINDINGS


def test_a_refusal_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Hardware:
        raise PlacementError("the device gives no memory; close other programs")

    monkeypatch.setattr(_devices, "probe", refuse)
    assert main(["devices"]) == ExitCode.REFUSED
    assert capsys.readouterr().err == "torchspan devices: the device gives no memory; close other programs\n"


def test_this_machine_is_seen_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "\ncpu " in out
    assert "torch" in out.partition("== Why these devices ==")[2]
