"""Laws of describing a machine: what is given is kept, what is assumed is said, what contradicts is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alloc_spec
import device_placement
from comfy_nodes.cli._arguments import DeviceArgument, LinkArgument
from comfy_nodes.cli._exit import CommandError, ExitCode
from comfy_nodes.cli._machine import ASSUMED_GB_PER_SECOND, choose_compute, hardware_for, memory_of

CARD = DeviceArgument(name="cuda:0", total_bytes=24, free_bytes=22)
SECOND = DeviceArgument(name="cuda:1", total_bytes=12, free_bytes=11)
HOST = DeviceArgument(name="cpu", total_bytes=64, free_bytes=60)
PROBED = device_placement.Hardware(
    compute="cuda:0",
    devices=(
        device_placement.Device(name="cuda:0", total_bytes=24, free_bytes=22, reserve_bytes=2),
        device_placement.Device(name="cpu", total_bytes=64, free_bytes=60),
    ),
    links=(device_placement.Link(source="cpu", target="cuda:0", gb_per_second=21.5, latency_seconds=1e-5),),
)


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
        (None, None, ["cpu"], "cpu"),
        (None, "cpu,*", [], None),
        (None, None, [], None),
    ],
)
def test_the_compute_device_is_asked_for_or_named_or_the_first_accelerator(
    asked: str | None, spec: str | None, names: list[str], chosen: str | None
) -> None:
    assert choose_compute(asked, alloc_spec.parse(spec) if spec else None, names) == chosen


def test_a_described_machine_is_kept_as_given() -> None:
    hardware, notes = hardware_for([CARD, HOST], [LinkArgument(source="cpu", gb_per_second=25)], "cuda:0", None)
    assert hardware.compute == "cuda:0"
    assert [(device.name, device.total_bytes, device.usable_bytes) for device in hardware.devices] == [
        ("cuda:0", 24, 22),
        ("cpu", 64, 60),
    ]
    assert hardware.link("cpu", "cuda:0").gb_per_second == 25
    assert notes == []


def test_every_assumed_bandwidth_is_said() -> None:
    hardware, notes = hardware_for(
        [CARD, SECOND, HOST], [LinkArgument(source="cuda:1", gb_per_second=5)], "cuda:0", None
    )
    assert hardware.link("cpu", "cuda:0").gb_per_second == ASSUMED_GB_PER_SECOND
    assert hardware.link("cuda:1", "cuda:0").gb_per_second == 5
    assert notes == ["link cpu -> cuda:0: 12 GB/s assumed; give yours with --link cpu=GBPS"]


@given(st.permutations([CARD, SECOND, HOST]), st.sampled_from(["cuda:0", "cuda:1", "cpu"]))
def test_every_donor_has_a_link_to_the_compute_device(devices: list[DeviceArgument], compute: str) -> None:
    hardware, notes = hardware_for(devices, [], compute, None)
    assert {(link.source, link.target) for link in hardware.links} == {(donor, compute) for donor in hardware.donors}
    assert len(notes) == len(hardware.donors) == 2


@pytest.mark.parametrize(
    ("devices", "links", "compute", "message"),
    [
        ([CARD, CARD], [], "cuda:0", "--device cuda:0 is given twice"),
        ([HOST], [], "cuda:0", r"compute device cuda:0 is not among the devices given \(cpu\); add --device cuda:0="),
        ([CARD], ["cpu"], "cuda:0", r"--link cpu: no bytes come from there \(donors to cuda:0: none\)"),
        ([CARD, HOST], ["cpu", "cpu"], "cuda:0", "--link cpu is given twice"),
        ([CARD, HOST], ["cuda:0"], "cuda:0", r"--link cuda:0: no bytes come from there \(donors to cuda:0: cpu\)"),
    ],
)
def test_contradictions_are_mistakes_on_the_command_line(
    devices: list[DeviceArgument], links: list[str], compute: str, message: str
) -> None:
    arguments = [LinkArgument(source=source, gb_per_second=1) for source in links]
    with pytest.raises(CommandError, match=message) as refused:
        hardware_for(devices, arguments, compute, None)
    assert refused.value.exit_code is ExitCode.USAGE


def test_without_devices_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def probe(compute: str | None) -> device_placement.Hardware:
        asked.append(compute)
        return PROBED

    monkeypatch.setattr(device_placement, "probe", probe)
    assert hardware_for([], [], None, alloc_spec.parse("cuda:0,1gb;cpu,*")) == (PROBED, [])
    assert hardware_for([], [], None, None) == (PROBED, [])
    assert asked == ["cuda:0", None]


def test_a_given_bandwidth_replaces_a_measured_one_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_placement, "probe", lambda compute: PROBED)
    hardware, notes = hardware_for([], [LinkArgument(source="cpu", gb_per_second=3)], None, None)
    (link,) = hardware.links
    assert (link.gb_per_second, link.latency_seconds) == (3, 1e-5)
    assert hardware.devices == PROBED.devices
    assert notes == []


def test_a_device_that_is_not_here_comes_with_the_way_to_describe_it() -> None:
    with pytest.raises(CommandError, match=r"cuda:7.*\n.*--device cuda:7=24gb") as refused:
        hardware_for([], [], "cuda:7", None)
    assert refused.value.exit_code is ExitCode.REFUSED


def test_memory_is_by_name() -> None:
    assert memory_of([CARD, HOST]) == {
        "cuda:0": alloc_spec.DeviceMemory(total=24, free=22),
        "cpu": alloc_spec.DeviceMemory(total=64, free=60),
    }


def test_memory_of_this_machine_is_measured_with_its_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_placement, "probe", lambda: PROBED)
    assert memory_of([]) == {
        "cuda:0": alloc_spec.DeviceMemory(total=24, free=22, reserve=2),
        "cpu": alloc_spec.DeviceMemory(total=64, free=60),
    }
