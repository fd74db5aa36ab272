"""Dry runs and automatic mode: from the header alone, equal to what is placed later, with its reasons."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized
from safetensors.torch import save_file

import simdev
from alloc_spec import AllocSpecError
from comfy_nodes import host as adapter
from device_placement import PlacementPlan

__all__ = ["comfyui", "host", "sized"]
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("sized")]

BF16 = "bfloat16"
PACKED = "packed"


def homes_of(plan: PlacementPlan) -> dict[str, str]:
    return {home.name: home.device for unit in plan.units for home in unit.homes}


@pytest.mark.parametrize("spec", ["npu:0,1mb;npu:1,1mb;cpu,*", "#npu:0;0.001;npu:2", "npu:0,auto;npu:3,*"])
@pytest.mark.parametrize("name", [BF16, PACKED])
def test_the_dry_run_is_what_is_placed(host: Host, name: str, spec: str) -> None:
    dry = adapter.plan_file(host.diffusion(name), request(spec))
    assert host.management.current_loaded_models == []
    load = adapter.load_gguf_diffusion_model if name == PACKED else adapter.load_diffusion_model
    real = load(host.diffusion(name), request(spec)).reports[0]
    assert dry.plan is not None and real.plan is not None
    if name == BF16:
        assert homes_of(dry.plan) == homes_of(real.plan)
    assert {device: dry.plan.bytes_on(device) for device in dry.plan.donors}.keys() == {
        device: real.plan.bytes_on(device) for device in real.plan.donors
    }.keys()


def test_without_an_allocation_the_dry_run_takes_the_automatic_mode(host: Host) -> None:
    report = adapter.plan_file(host.diffusion(BF16), request(None))
    assert "fit on npu:0" in report.text
    assert report.estimate is not None and report.estimate.transfer_seconds == 0


def test_a_model_that_fits_stays_whole(host: Host) -> None:
    loaded = adapter.load_diffusion_model(host.diffusion(BF16), request("auto"))
    plan = loaded.reports[0].plan
    assert plan is not None and plan.streamed_bytes == 0
    host.management.load_models_gpu([loaded.value])
    assert host.used()[1:] == [0, 0, 0]


def test_of_a_model_that_does_not_fit_as_much_stays_as_does(host: Host) -> None:
    reserve = int(host.management.minimum_inference_memory())
    room = 2_500_000
    simdev.set_capacity(0, reserve + room)
    expected = host.sample(host.stock(host.diffusion(BF16), "npu:1"))
    host.free_all()
    loaded = adapter.load_diffusion_model(host.diffusion(BF16), request("auto"))
    plan = loaded.reports[0].plan
    assert plan is not None
    assert plan.bytes_on("npu:0") > 0 and plan.compute_peak_bytes <= room
    assert "auto: " in loaded.text and "GB/s" in loaded.text and "activations" in loaded.text
    assert host.sample(loaded.value).equal(expected)


def test_the_prediction_is_complete_where_the_time_of_a_pass_is_known(host: Host) -> None:
    report = adapter.plan_file(host.diffusion(BF16), request("npu:0,1mb;cpu,*", compute_seconds=2.0))
    assert report.estimate is not None and report.estimate.slowdown is not None
    assert report.estimate.slowdown == pytest.approx(1.0, abs=0.05)
    assert "x all resident" in report.text


def test_the_slowdown_is_predicted_for_several_times_where_that_of_a_pass_is_not_known(host: Host) -> None:
    report = adapter.plan_file(host.diffusion(BF16), request("npu:0,1mb;cpu,*"))
    (line,) = [line for line in report.text.splitlines() if line.startswith("predicted slowdown of a pass that takes")]
    slowdowns = [float(number) for number in re.findall(r": (\d+\.\d+) x", line)]
    assert len(slowdowns) == 4 and slowdowns == sorted(slowdowns, reverse=True)
    assert slowdowns[0] > 3 and slowdowns[-1] < 1.2


def test_what_other_models_hold_counts_as_free(host: Host) -> None:
    other = adapter.load_diffusion_model(host.diffusion(), request(None)).value
    before = adapter.plan_file(host.diffusion(BF16), request("npu:0,1mb;cpu,*")).hardware
    host.management.load_models_gpu([other])
    after = adapter.plan_file(host.diffusion(BF16), request("npu:0,1mb;cpu,*")).hardware
    assert before is not None and after is not None
    assert after.device("npu:0").free_bytes == pytest.approx(before.device("npu:0").free_bytes, abs=200_000)


def test_the_devices_are_named_and_measured(host: Host) -> None:
    assert adapter.device_names() == ("npu:0", "npu:1", "npu:2", "npu:3", "cpu")
    devices = {device.name: device for device in adapter.available_devices()}
    assert tuple(devices) == adapter.device_names()
    assert devices["npu:1"].total_bytes == devices["npu:1"].free_bytes == 4 << 30
    model = adapter.load_diffusion_model(host.diffusion(BF16), request("npu:0,1mb;npu:1,*")).value
    host.management.load_models_gpu([model])
    loaded = {device.name: device.loaded_bytes for device in adapter.available_devices()}
    assert loaded["npu:1"] == sum(bank.loaded_size() for bank in model.placement.banks)


def test_the_log_has_the_three_tables_once(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="comfy_nodes.host"):
        loaded = adapter.load_diffusion_model(host.diffusion(BF16), request("npu:0,1mb;cpu,*"))
    tables = [record.message for record in caplog.records if "Final assignment" in record.message]
    assert tables == [loaded.reports[0].text]


def test_a_model_for_which_there_is_no_room_anywhere_is_refused_with_what_was_tried(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = int(host.management.minimum_inference_memory())
    for index in range(4):
        simdev.set_capacity(index, reserve + (1 << 20))
    free = host.management.get_free_memory

    def without_the_cpu(device: object = None, torch_free_too: bool = False) -> object:
        return 0 if str(device) == "cpu" else free(device, torch_free_too)

    monkeypatch.setattr(host.management, "get_free_memory", without_the_cpu)
    with pytest.raises(adapter.PlacementRefusedError, match="no device or set of devices has room") as error:
        adapter.plan_file(host.diffusion(), request("auto"))
    for tried in ("npu:1,*", "cpu,*", "npu:3,*"):
        assert tried in str(error.value)
    assert "smaller or quantised model" in str(error.value)


def test_a_machine_without_an_accelerator_has_no_donor_to_choose(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.management, "cpu_mode", lambda: True)
    assert adapter.device_names() == ("cpu",)
    fits = adapter.plan_file(host.diffusion(), request("auto", "cpu"))
    assert "nothing is streamed" in fits.text
    monkeypatch.setattr(host.management, "get_free_memory", lambda *_, **__: 1 << 20)
    with pytest.raises(adapter.PlacementRefusedError, match="there is no donor"):
        adapter.plan_file(host.diffusion(), request("auto", "cpu"))


def test_a_machine_with_one_accelerator_of_its_kind(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert adapter.device_names() == ("mps", "cpu")


def test_a_device_without_its_number_is_the_first(host: Host) -> None:
    report = adapter.plan_file(host.diffusion(), request("npu:1,1mb;cpu,*", " NPU "))
    assert report.plan is not None and report.plan.compute == "npu:0"


def test_a_compute_device_cannot_be_its_own_donor(host: Host) -> None:
    from comfy_nodes.host.app._machine import machine

    with pytest.raises(adapter.PlacementRefusedError, match=r"npu:1 is to compute and to be its own donor"):
        machine("npu:1", ["npu:1", "cpu"])


def test_the_names_of_something_else_are_no_model(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    save_file({"weight": torch.zeros(4, 4)}, path)
    with pytest.raises((adapter.HostError, AllocSpecError)):
        adapter.plan_file(path, request("npu:0,1kb;cpu,*"))
    with pytest.raises(adapter.ModelFileError, match="choose the file of a model"):
        adapter.plan_file(path, request(None), prefix="model.")


def test_a_folder_that_is_not_there_is_named_with_the_places(host: Host) -> None:
    from comfy_nodes.host.app import folders

    with pytest.raises(FileNotFoundError, match=r"not-there with a model_index\.json is in none of .*diffusers"):
        folders.diffusers_folder("sdxl-that-is-not-there")


@pytest.mark.parametrize("kind", [BF16, "plain"])
def test_a_load_reads_the_header_once_finds_the_device_once_and_plans_once(
    host: Host, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision is planned from its header; float32 when it is loaded, since the host chooses its type."""
    from comfy_nodes.host.placing import _planning, _prepare

    calls: Counter[str] = Counter()

    def counted(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def count(*arguments: object, **options: object) -> object:
            calls[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, count)

    for module, name in (
        (_prepare, "read_model_header"),
        (_prepare, "compute_device"),
        (_planning, "plan"),
        (_planning, "predict"),
    ):
        counted(module, name)
    model = adapter.load_diffusion_model(host.diffusion(kind), request("npu:0,1mb;cpu,*")).value
    assert calls == {"read_model_header": 1, "compute_device": 1, "plan": 1, "predict": 1}
    assert host.sample(model).isfinite().all()
