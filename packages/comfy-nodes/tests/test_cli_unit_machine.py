"""Laws of describing a machine by hand: what is given is kept, what is assumed is said, what contradicts is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alloc_spec
from comfy_nodes.cli._arguments import DeviceArgument, LinkArgument
from comfy_nodes.cli._exit import CommandError, ExitCode
from comfy_nodes.cli._machine import ASSUMED_GB_PER_SECOND, choose_compute, described_hardware, memory_of

CARD = DeviceArgument(name="cuda:0", total_bytes=24, free_bytes=22)
SECOND = DeviceArgument(name="cuda:1", total_bytes=12, free_bytes=11)
HOST = DeviceArgument(name="cpu", total_bytes=64, free_bytes=60)


@pytest.mark.parametrize(
    ("asked", "spec", "names", "chosen"),
    [
        ("cuda:1", "cuda:0,*", ["cuda:0"], "cuda:1"),
        (None, "cuda:0,1gb;cpu,*#cuda:2", ["cuda:0"], "cuda:2"),
        (None, "#cuda:1;4;cpu", ["cuda:0"], "cuda:1"),
        (None, "cpu,4gb;cuda:1,1gb;cuda:0,*", ["cuda:0"], "cuda:1"),
        (None, "cpu,4gb", ["cpu", "cuda:0"], "cuda:0"),
        (None, None, ["cpu", "xpu:0", "cuda:0"], "xpu:0"),
        (None, "cpu,*", ["cpu"], "cpu"),
        (None, None, [], "cpu"),
    ],
)
def test_the_compute_device_is_asked_for_or_named_or_the_first_accelerator(
    asked: str | None, spec: str | None, names: list[str], chosen: str
) -> None:
    assert choose_compute(asked, alloc_spec.parse(spec) if spec else None, names) == chosen


def test_a_described_machine_is_kept_as_given() -> None:
    hardware, notes = described_hardware([CARD, HOST], [LinkArgument(source="cpu", gb_per_second=25)], "cuda:0")
    assert hardware.compute == "cuda:0"
    assert [(device.name, device.total_bytes, device.free_bytes) for device in hardware.devices] == [
        ("cuda:0", 24, 22),
        ("cpu", 64, 60),
    ]
    assert hardware.link("cpu", "cuda:0").gb_per_second == 25
    assert notes == []


def test_every_assumed_bandwidth_is_said() -> None:
    hardware, notes = described_hardware(
        [CARD, SECOND, HOST], [LinkArgument(source="cuda:1", gb_per_second=5)], "cuda:0"
    )
    assert hardware.link("cpu", "cuda:0").gb_per_second == ASSUMED_GB_PER_SECOND
    assert hardware.link("cuda:1", "cuda:0").gb_per_second == 5
    assert notes == ["link cpu -> cuda:0: 12 GB/s assumed; give yours with --link cpu=GBPS"]


@given(st.permutations([CARD, SECOND, HOST]), st.sampled_from(["cuda:0", "cuda:1", "cpu"]))
def test_every_donor_has_a_link_to_the_compute_device(devices: list[DeviceArgument], compute: str) -> None:
    hardware, notes = described_hardware(devices, [], compute)
    assert {(link.source, link.target) for link in hardware.links} == {(donor, compute) for donor in hardware.donors}
    assert len(notes) == len(hardware.donors) == 2


@pytest.mark.parametrize(
    ("devices", "links", "compute", "message"),
    [
        ([CARD, CARD], [], "cuda:0", "--device cuda:0 is given twice"),
        ([HOST], [], "cuda:0", r"compute device cuda:0 is not among the devices given \(cpu\); add --device cuda:0="),
        ([CARD], ["cpu"], "cuda:0", r"--link cpu is not among the devices given \(cuda:0\)"),
        ([CARD, HOST], ["cpu", "cpu"], "cuda:0", "--link cpu is given twice"),
        ([CARD, HOST], ["cuda:0"], "cuda:0", "needs no link to itself"),
    ],
)
def test_contradictions_are_mistakes_on_the_command_line(
    devices: list[DeviceArgument], links: list[str], compute: str, message: str
) -> None:
    arguments = [LinkArgument(source=source, gb_per_second=1) for source in links]
    with pytest.raises(CommandError, match=message) as refused:
        described_hardware(devices, arguments, compute)
    assert refused.value.exit_code is ExitCode.USAGE


def test_memory_is_by_name() -> None:
    assert memory_of([CARD, HOST]) == {
        "cuda:0": alloc_spec.DeviceMemory(total=24, free=22),
        "cpu": alloc_spec.DeviceMemory(total=64, free=60),
    }


def test_this_machine_has_a_cpu_with_memory() -> None:
    memory = memory_of([])
    assert memory["cpu"].total >= memory["cpu"].free > 0
