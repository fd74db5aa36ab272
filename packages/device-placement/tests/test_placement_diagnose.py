"""Why there are not more devices: each cause is named, with what to do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device_placement import Finding, diagnose
from device_placement.machine._diagnose import findings
from device_placement.machine._system_facts import SystemFacts, gather

HEALTHY = SystemFacts(
    torch_version="2.14.1+cu130",
    built_for=("CUDA 13.0",),
    accelerators=("cuda:0", "cuda:1"),
    refusal=None,
    variables={},
    gpus_on_bus=("NVIDIA", "NVIDIA"),
    nvidia_driver=True,
    nvidia_nodes=2,
    kernel="6.8.0",
    unreachable_peers=(),
)
BLIND = replace(HEALTHY, accelerators=(), refusal="Found no NVIDIA driver on your system.", nvidia_nodes=0)


def about(facts: SystemFacts, subject: str) -> Finding:
    (found,) = [finding for finding in findings(facts) if finding.subject == subject]
    return found


def problems(facts: SystemFacts) -> list[str]:
    return [finding.subject for finding in findings(facts) if finding.level == "problem"]


def test_a_healthy_machine_has_nothing_but_good_news() -> None:
    assert {finding.level for finding in findings(HEALTHY)} == {"ok"}
    assert "cuda:0, cuda:1 and cpu" in about(HEALTHY, "devices").message
    assert "CUDA 13.0" in about(HEALTHY, "torch").message


def test_a_missing_driver_is_a_problem_where_there_is_a_card() -> None:
    facts = replace(BLIND, nvidia_driver=False)
    assert problems(facts) == ["driver"]
    assert "install the NVIDIA driver" in about(facts, "driver").remedy
    assert BLIND.refusal is not None and BLIND.refusal in about(facts, "driver").message


def test_a_missing_driver_is_no_problem_where_there_is_no_card() -> None:
    facts = replace(BLIND, nvidia_driver=False, gpus_on_bus=())
    assert problems(facts) == []
    assert about(facts, "driver").level == "note"


def test_a_missing_driver_may_be_a_problem_where_the_bus_cannot_be_read() -> None:
    assert problems(replace(BLIND, nvidia_driver=False, gpus_on_bus=None)) == ["driver"]


def test_a_container_without_devices_is_told_apart_from_a_missing_driver() -> None:
    assert "--gpus all" in about(BLIND, "driver").remedy


def test_an_old_driver_is_to_be_updated() -> None:
    facts = replace(BLIND, refusal="The NVIDIA driver on your system is too old (found version 11040).", nvidia_nodes=2)
    assert "update the NVIDIA driver" in about(facts, "driver").remedy


def test_inside_windows_the_driver_belongs_outside() -> None:
    facts = replace(BLIND, kernel="5.15.167-microsoft-standard-WSL2", gpus_on_bus=())
    assert "Windows side" in about(facts, "driver").remedy
    assert about(facts, "WSL").level == "note"


def test_a_build_for_the_cpu_is_a_problem_where_there_is_a_card() -> None:
    facts = replace(HEALTHY, torch_version="2.14.1+cpu", built_for=(), accelerators=(), gpus_on_bus=("AMD",))
    assert problems(facts) == ["torch"]
    assert "AMD" in about(facts, "torch").remedy
    assert about(replace(facts, gpus_on_bus=()), "torch").level == "note"


@pytest.mark.parametrize("value", ["", "-1", " -1 ", "-1,0", ","])
def test_a_variable_that_hides_everything_is_a_problem_and_the_only_one(value: str) -> None:
    facts = replace(BLIND, variables={"CUDA_VISIBLE_DEVICES": value})
    assert problems(facts) == ["CUDA_VISIBLE_DEVICES"]
    assert "unset CUDA_VISIBLE_DEVICES" in about(facts, "CUDA_VISIBLE_DEVICES").remedy


def test_a_variable_that_hides_some_is_a_note_and_explains_the_missing_ones() -> None:
    facts = replace(HEALTHY, accelerators=("cuda:0",), variables={"CUDA_VISIBLE_DEVICES": "1"})
    assert problems(facts) == []
    assert "all devices but 1" in about(facts, "CUDA_VISIBLE_DEVICES").message


def test_fewer_devices_than_cards_need_an_explanation() -> None:
    facts = replace(HEALTHY, accelerators=("cuda:0",))
    (problem,) = [finding for finding in findings(facts) if finding.level == "problem"]
    assert "2 NVIDIA adapters" in problem.message and "sees 1" in problem.message


def test_cards_that_cannot_reach_each_other_are_a_note() -> None:
    facts = replace(HEALTHY, unreachable_peers=(("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")))
    assert about(facts, "peer copies").message.startswith("no direct way from cuda:1 to cuda:0, cuda:0 to cuda:1")


def test_problems_come_first() -> None:
    levels = [
        finding.level for finding in findings(replace(BLIND, kernel="microsoft", variables={"ZE_AFFINITY_MASK": "0"}))
    ]
    assert levels == sorted(levels, key=["problem", "note", "ok"].index)


def test_whatever_is_no_good_news_has_a_remedy_or_is_the_summary() -> None:
    for facts in (BLIND, replace(BLIND, built_for=(), refusal=None), replace(HEALTHY, kernel="microsoft")):
        for finding in findings(facts):
            assert finding.remedy or finding.level == "ok" or finding.subject == "devices"


def test_this_machine_can_be_diagnosed() -> None:
    found = diagnose()
    assert any(finding.subject == "devices" for finding in found)
    assert any(finding.subject == "torch" for finding in found)


def adapter(root: Path, slot: str, kind: str, vendor: str | None) -> None:
    folder = root / "sys/bus/pci/devices" / slot
    folder.mkdir(parents=True)
    (folder / "class").write_text(f"{kind}\n", encoding="ascii")
    if vendor is not None:
        (folder / "vendor").write_text(f"{vendor}\n", encoding="ascii")


def test_display_adapters_on_the_bus_are_counted_by_maker(tmp_path: Path) -> None:
    adapter(tmp_path, "0000:01:00.0", "0x030000", "0x10de")
    adapter(tmp_path, "0000:02:00.0", "0x030200", "0x10de")
    adapter(tmp_path, "0000:03:00.0", "0x038000", "0x1002")
    adapter(tmp_path, "0000:04:00.0", "0x030000", "0x1a03")  # the server's own console
    adapter(tmp_path, "0000:05:00.0", "0x020000", "0x10de")  # a network card
    adapter(tmp_path, "0000:06:00.0", "0x030000", None)  # gone while looking
    assert gather(tmp_path, {}).gpus_on_bus == ("NVIDIA", "NVIDIA", "AMD")


def test_without_a_bus_nothing_is_claimed_about_adapters(tmp_path: Path) -> None:
    facts = gather(tmp_path, {})
    assert facts.gpus_on_bus is None
    assert (facts.nvidia_driver, facts.nvidia_nodes) == (False, 0)


def test_drivers_and_device_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    facts = gather(tmp_path, {})
    assert (facts.nvidia_driver, facts.nvidia_nodes) == (True, 2)


def test_only_variables_that_hide_devices_are_looked_at(tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0", "HOME": "/root", "ROCR_VISIBLE_DEVICES": ""}
    assert gather(tmp_path, environment).variables == {"CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": ""}
