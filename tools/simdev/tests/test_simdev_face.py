"""The face: its names, what it refuses, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import simdev


def in_a_fresh_process(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_public_names_are_these() -> None:
    assert simdev.__all__ == [
        "BuildError",
        "CompilerNotFoundError",
        "Counters",
        "HostRaceMode",
        "InstallError",
        "Link",
        "Memory",
        "SimdevError",
        "build",
        "config",
        "corrupt_link",
        "count_ops",
        "counters",
        "install",
        "links",
        "mem",
        "ops",
        "pinned_bytes",
        "reset",
        "set_capacity",
        "set_pinned_capacity",
        "set_visible",
        "take_violations",
        "violations",
    ]
    assert all(getattr(simdev, name).__doc__ for name in simdev.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        simdev.nonsense  # noqa: B018


def test_the_plugin_costs_no_import_of_torch() -> None:
    assert in_a_fresh_process("import sys, simdev.pytest_plugin; print('torch' in sys.modules)") == "False\n"


def test_before_installing_everything_says_what_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "privateuseone")
    for call in (simdev.links, simdev.violations, simdev.reset, lambda: simdev.mem(0)):
        with pytest.raises(simdev.InstallError, match=r"call simdev.install\(\) first"):
            call()


@pytest.mark.slow  # another process imports torch, too
def test_another_name_and_count_can_be_had_in_another_process(sim: types.ModuleType) -> None:
    program = (
        "import sys, torch, simdev\n"
        "simdev.install('npu', 2, [1 << 20, 2 << 20], pretend_torch_npu=True)\n"
        "import torch_npu\n"
        "print(torch.npu.device_count(), torch.empty(1, device='npu:1').device, torch.npu.mem_get_info(0))\n"
        "print(simdev.mem(1).capacity, torch.accelerator.current_accelerator())\n"
        "torch.empty(4).to('npu:1'); print(simdev.links()[0].dst)\n"
    )
    assert in_a_fresh_process(program) == "2 npu:1 (1048576, 1048576)\n2097152 npu\nnpu:1\n"


def test_installing_again_gives_the_same_module(sim: types.ModuleType) -> None:
    module = simdev.install("sim", 4)
    assert module is simdev.install("sim", 4) is torch.get_device_module("sim")
    assert (module.device_count(), module.is_available()) == (4, True)


def test_installing_again_may_change_capacities(sim: types.ModuleType) -> None:
    simdev.install("sim", 4, [1, 2, 3, 4])
    assert [simdev.mem(index).capacity for index in range(4)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "count"), [("other", 4), ("sim", 3)])
def test_installing_otherwise_names_what_is_there(sim: types.ModuleType, name: str, count: int) -> None:
    with pytest.raises(simdev.InstallError, match="already has 4 named 'sim'"):
        simdev.install(name, count)


@pytest.mark.parametrize("count", [0, 17])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count}; simdev offers 1 to 16"):
        simdev.install("sim", count)


def test_a_list_of_capacities_must_name_every_device() -> None:
    with pytest.raises(ValueError, match="lists 2 devices and count is 4"):
        simdev.install("sim", 4, [1, 2])


def test_an_unknown_race_mode_lists_the_modes(sim: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="race is 'loud'; the modes are off, record, raise"):
        simdev.config(race="loud")  # type: ignore[arg-type]  # what a caller without a type checker may write


def test_settings_that_are_not_named_stay(sim: types.ModuleType) -> None:
    sim.config(race="record")
    sim.config(poison=False)
    target, side = torch.zeros(8, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(torch.accelerator.current_stream(0))
    with side:
        target.add_(1)
    target.add_(1)  # would raise, were races not still only recorded
    assert sim.take_violations()
    torch.accelerator.synchronize(0)


def test_devices_that_are_not_visible_work_and_are_not_found(sim: types.ModuleType) -> None:
    assert (torch.accelerator.is_available(), torch.accelerator.device_count()) == (True, 4)
    sim.set_visible(False)
    assert (torch.accelerator.is_available(), torch.accelerator.device_count()) == (False, 0)
    assert torch.accelerator.current_accelerator(check_available=True) is None
    assert torch.ones(4, device="sim:3").sum().item() == 4
    assert sim.mem(3).capacity > 0


def test_records_are_frozen(sim: types.ModuleType) -> None:
    torch.ones(4).to("sim:0")
    for record, field in ((simdev.mem(0), "used"), (simdev.links()[0], "bytes"), (simdev.counters(), "kernels")):
        with pytest.raises(AttributeError):
            setattr(record, field, 0)


def test_the_device_module_answers_what_diffusion_code_asks(sim: types.ModuleType) -> None:
    module = torch.get_device_module("sim")
    assert module.get_device_name(1) == "simulated sim"
    assert module.is_bf16_supported() and torch.bfloat16 in module.get_amp_supported_dtype()
    module.empty_cache()
    with module.device(2), module.stream(module.Stream()) as _:
        assert module.current_device() == 2
        assert module.current_stream().stream_id != module.default_stream(2).stream_id
    assert (module.current_device(), module.current_stream(2).stream_id) == (0, 0)
    event = module.Event(enable_timing=True)
    event.record(module.current_stream())
    later = module.Event(enable_timing=True)
    later.record(module.current_stream())
    module.synchronize(0)
    assert event.elapsed_time(later) > 0
