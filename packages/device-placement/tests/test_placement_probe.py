"""The probe: which devices it lists, what it says about links, and that it asks real devices the right questions."""

from __future__ import annotations

import logging
import types
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from device_placement import DeviceUnavailableError, Hardware, InvalidHardwareError, probe
from device_placement.machine._probe import default_reserve_bytes, probe_machine
from device_placement.machine._torch_machine import TorchMachine

GIB = 1 << 30
MIB = 1 << 20


@dataclass(slots=True)
class FakeMachine:
    """A machine whose links are formulas: ``roads`` give each donor its way in and the way's bytes a second."""

    accelerator_names: tuple[str, ...] = ("cuda:0", "cuda:1", "cuda:2")
    broken: tuple[str, ...] = ()
    garbling: tuple[str, ...] = ()
    roads: dict[str, tuple[str, float]] = field(default_factory=dict)
    latency: float = 10e-6
    questions: list[tuple[tuple[tuple[str, int], ...], str, bool]] = field(default_factory=list)

    def current(self) -> str:
        return self.accelerator_names[0] if self.accelerator_names else "cpu"

    def accelerators(self) -> tuple[str, ...]:
        return self.accelerator_names

    def accept(self, name: str) -> str:
        if name in self.broken or name not in (*self.accelerator_names, "cpu"):
            raise DeviceUnavailableError(name, "it is broken", "use another")
        return name

    def memory(self, name: str) -> tuple[int, int]:
        return (60 * GIB, 64 * GIB) if name == "cpu" else (20 * GIB, 24 * GIB)

    def label(self, name: str) -> str:
        return "" if name == "cpu" else "Test Card"

    def survives(self, source: str, target: str) -> bool:
        return source not in self.garbling

    def copy_seconds(self, sources: Sequence[tuple[str, int]], target: str, *, direct: bool = True) -> float:
        self.questions.append((tuple(sources), target, direct))
        busy: dict[str, float] = {}
        for name, size_bytes in sources:
            road, rate = self.roads.get(name, ("pcie", 25e9)) if direct else ("pcie", 10e9)
            busy[road] = busy.get(road, 0.0) + size_bytes / rate
        return self.latency + max(busy.values())


def probed(machine: FakeMachine, compute: str | None = None, donors: Sequence[str] | None = None) -> Hardware:
    return probe_machine(machine, compute, donors, measure_bytes=64 * MIB, reserve_bytes={})


def test_every_working_device_is_listed_compute_first_and_the_host_last() -> None:
    hardware = probed(FakeMachine())
    assert hardware.compute == "cuda:0"
    assert [device.name for device in hardware.devices] == ["cuda:0", "cuda:1", "cuda:2", "cpu"]
    assert [link.source for link in hardware.links] == ["cuda:1", "cuda:2", "cpu"]


def test_a_device_that_gives_no_memory_is_left_out_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        hardware = probed(FakeMachine(broken=("cuda:1",)))
    assert "cuda:1" not in hardware.donors
    assert "cuda:1" in caplog.text and "it is broken" in caplog.text


def test_a_device_that_was_asked_for_and_gives_no_memory_is_an_error() -> None:
    with pytest.raises(DeviceUnavailableError, match="it is broken"):
        probed(FakeMachine(broken=("cuda:1",)), donors=["cuda:1"])
    with pytest.raises(DeviceUnavailableError, match="it is broken"):
        probed(FakeMachine(broken=("cuda:0",)))


def test_without_an_accelerator_the_host_computes_and_has_no_donor() -> None:
    hardware = probed(FakeMachine(accelerator_names=()))
    assert (hardware.compute, hardware.donors, hardware.links) == ("cpu", (), ())


def test_donors_keep_the_order_in_which_they_were_asked_for() -> None:
    assert probed(FakeMachine(), "cuda:1", ["cpu", "cuda:2", "cuda:0"]).donors == ("cpu", "cuda:2", "cuda:0")


def test_the_compute_device_is_no_donor_of_itself() -> None:
    with pytest.raises(InvalidHardwareError, match="another device"):
        probed(FakeMachine(), "cuda:0", ["cuda:0"])


def test_a_donor_named_twice_is_refused() -> None:
    with pytest.raises(InvalidHardwareError, match="twice"):
        probed(FakeMachine(), "cuda:0", ["cpu", "cpu"])


def test_bandwidth_and_latency_are_told_apart() -> None:
    link = probed(FakeMachine(latency=100e-6), donors=["cpu"]).links[0]
    assert link.gb_per_second == pytest.approx(25.0, rel=1e-3)
    assert link.latency_seconds == pytest.approx(100e-6, rel=0.01)


def test_a_clock_too_coarse_for_latency_still_gives_a_bandwidth() -> None:
    @dataclass(slots=True)
    class CoarseClock(FakeMachine):
        def copy_seconds(self, sources: Sequence[tuple[str, int]], target: str, *, direct: bool = True) -> float:
            return 0.001

    link = probed(CoarseClock(), donors=["cpu"]).links[0]
    assert link.gb_per_second == pytest.approx(64 * MIB / 0.001 / 1e9, rel=1e-3)


def test_donors_behind_one_way_share_an_ingress_and_others_have_their_own() -> None:
    roads = {"cpu": ("pcie", 25e9), "cuda:1": ("nvlink", 50e9), "cuda:2": ("pcie", 12e9)}
    hardware = probed(FakeMachine(roads=roads))
    ingress = {link.source: link.ingress for link in hardware.links}
    assert ingress["cpu"] == ingress["cuda:2"] == "host"
    assert ingress["cuda:1"] not in ("host", ingress["cpu"])


def test_copies_that_test_for_sharing_take_the_same_time_alone() -> None:
    machine = FakeMachine(roads={"cpu": ("pcie", 25e9), "cuda:1": ("nvlink", 250e9)})
    probed(machine, donors=["cuda:1", "cpu"])
    (together,) = [sources for sources, _, _ in machine.questions if len(sources) == 2]
    assert dict(together) == {"cuda:1": 64 * MIB, "cpu": pytest.approx(6.4 * MIB, rel=0.01)}


def test_a_link_that_garbles_bytes_is_measured_through_the_host_and_marked(caplog: pytest.LogCaptureFixture) -> None:
    machine = FakeMachine(garbling=("cuda:1",))
    with caplog.at_level(logging.WARNING):
        link = probed(machine, donors=["cuda:1", "cpu"]).link("cuda:1", "cuda:0")
    assert not link.verified
    assert link.gb_per_second == pytest.approx(10.0, rel=1e-3)
    assert link.ingress == "host"
    assert "cuda:1" in caplog.text


def test_a_way_that_garbles_bytes_is_never_timed() -> None:
    machine = FakeMachine(garbling=("cuda:1",))
    hardware = probed(machine, donors=["cuda:2", "cuda:1"])
    asked = [(sources, direct) for sources, _, direct in machine.questions if "cuda:1" in dict(sources)]
    assert asked and all(len(sources) == 1 and not direct for sources, direct in asked)
    assert [link.ingress for link in hardware.links] == ["from cuda:2", "host"]


def test_reserves_can_be_given_by_device() -> None:
    hardware = probe_machine(
        FakeMachine(), None, ["cpu"], measure_bytes=MIB, reserve_bytes={"cuda:0": 3 * GIB, "cpu": 0}
    )
    assert [device.reserve_bytes for device in hardware.devices] == [3 * GIB, 0]


@pytest.mark.parametrize("total", [0, MIB, GIB, 8 * GIB, 24 * GIB, 1024 * GIB])
@pytest.mark.parametrize(("name", "is_compute"), [("cuda:0", True), ("cuda:1", False), ("cpu", False), ("cpu", True)])
def test_default_reserves_never_take_more_than_a_quarter(total: int, name: str, is_compute: bool) -> None:
    assert 0 <= default_reserve_bytes(name, total, is_compute=is_compute) <= total // 4


def test_copies_too_small_to_measure_with_are_refused() -> None:
    with pytest.raises(InvalidHardwareError, match="more than 4096"):
        probe(measure_bytes=4096)


def test_this_machine_has_a_host_with_memory() -> None:
    hardware = probe("cpu", [])
    host = hardware.device("cpu")
    assert 0 < host.free_bytes <= host.total_bytes
    assert hardware.links == ()


@pytest.mark.parametrize("name", ["banana", "xpu:0", "meta", "cuda:99", "cuda:x"])
def test_names_that_torch_or_the_machine_do_not_know_are_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(DeviceUnavailableError, match="cpu") as caught:
        probe(name, [])
    assert caught.value.device == name


def test_names_are_read_as_the_allocation_language_writes_them() -> None:
    assert probe(" CPU ", []).compute == "cpu"
    assert probe("cpu:0", []).compute == "cpu"


def test_copies_on_the_host_take_time() -> None:
    machine = TorchMachine()
    assert 0 < machine.copy_seconds([("cpu", MIB)], "cpu") < 10
    assert 0 < machine.copy_seconds([("cpu", MIB)], "cpu", direct=False) < 10


class TestOnSimulatedDevices:
    """The questions asked of torch, on devices that are strict about them."""

    def test_all_devices_are_found_with_their_memory(self, sim: types.ModuleType) -> None:
        hardware = probe(measure_bytes=MIB)
        assert hardware.compute == "sim:0"
        assert hardware.donors == ("sim:1", "sim:2", "sim:3", "cpu")
        for device in hardware.devices[:-1]:
            assert device.total_bytes == 256 * MIB
            assert 0 < device.free_bytes <= device.total_bytes
        assert all(link.verified and link.gb_per_second > 0 for link in hardware.links)

    def test_memory_in_use_is_not_free(self, sim: types.ModuleType) -> None:
        import torch

        before = probe("sim:1", []).device("sim:1").free_bytes
        held = torch.empty(64 * MIB, dtype=torch.uint8, device="sim:1")
        assert before - probe("sim:1", []).device("sim:1").free_bytes == pytest.approx(held.nbytes, abs=MIB)

    def test_a_device_without_a_number_is_the_current_one(self, sim: types.ModuleType) -> None:
        assert probe("sim", []).compute == "sim:0"

    def test_a_link_that_corrupts_bytes_is_noticed(self, sim: types.ModuleType) -> None:
        sim.corrupt_link(1, 0)
        hardware = probe("sim:0", ["sim:1", "sim:2"], measure_bytes=MIB)
        assert not hardware.link("sim:1", "sim:0").verified
        assert hardware.link("sim:2", "sim:0").verified
        sim.corrupt_link(1, 0, on=False)

    def test_links_are_measured_from_ordinary_memory_where_pinning_is_refused(self, sim: types.ModuleType) -> None:
        sim.set_pinned_capacity(0)
        assert probe("sim:0", ["cpu"], measure_bytes=MIB).link("cpu", "sim:0").gb_per_second > 0

    def test_a_full_device_is_not_accepted(self, sim: types.ModuleType) -> None:
        sim.set_capacity(2, 0)
        with pytest.raises(DeviceUnavailableError, match="sim:2"):
            probe("sim:2", [])
        assert "sim:2" not in probe("sim:0", measure_bytes=MIB).donors
