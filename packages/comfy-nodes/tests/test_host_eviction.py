"""Donors and the host's memory management: counted, evicted, reloaded and cut short like any of its models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_testing import CAPACITY_BYTES, Host, comfyui, host, names_of, request, sized

import simdev
from comfy_nodes import host as adapter

__all__ = ["comfyui", "host", "sized"]
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("sized")]

SPEC = "npu:0,1mb;npu:1,1mb;npu:2,1mb;cpu,*"
MIB = 1 << 20


def placed(host: Host, spec: str = SPEC, device: str = "npu:0") -> Any:
    return adapter.load_diffusion_model(host.diffusion(), request(spec, device)).value


def loaded_on(host: Host) -> dict[str, int]:
    return dict(names_of(host.management.loaded_models()))


def test_the_host_counts_each_donor(host: Host) -> None:
    model = placed(host)
    host.management.load_models_gpu([model])
    counted = loaded_on(host)
    assert set(counted) == {"npu:0", "npu:1", "npu:2"}
    for index in range(3):
        assert counted[f"npu:{index}"] <= host.used()[index] <= counted[f"npu:{index}"] + 512 * 200


def test_a_donor_survives_the_eviction_of_the_compute_device(host: Host) -> None:
    model = placed(host)
    expected = host.sample(model)
    before = host.used()
    host.management.free_memory(1e30, torch.device("npu:0"))
    assert host.used() == [0, *before[1:]]
    simdev.reset()
    assert torch.equal(host.sample(model), expected)
    assert not any(link.dst in ("npu:1", "npu:2") for link in simdev.links())


def test_the_compute_device_survives_the_eviction_of_a_donor(host: Host) -> None:
    model = placed(host)
    expected = host.sample(model)
    before = host.used()
    host.management.free_memory(1e30, torch.device("npu:1"))
    assert host.used() == [before[0], 0, *before[2:]]
    assert all(layer.weight.device.type != "npu" or layer.weight.device.index != 1 for _, layer in model.lent_layers())
    assert torch.equal(host.sample(model), expected)
    assert host.used() == before


def test_free_gives_everything_back_and_the_next_run_brings_it_in_again(host: Host) -> None:
    model = placed(host)
    expected = host.sample(model)
    before = host.used()
    host.management.unload_all_models()
    assert host.used() == [0] * 4
    assert all(parameter.device.type == "cpu" for parameter in model.model.parameters())
    assert torch.equal(host.sample(model), expected)
    assert host.used() == before


def test_two_placed_models_share_their_devices(host: Host) -> None:
    first, second = placed(host), placed(host, "npu:1,1mb;npu:0,1mb;cpu,*", "npu:1")
    expected = host.sample(first)
    assert torch.equal(host.sample(second), expected)
    assert torch.equal(host.sample(first), expected)
    assert len(host.management.current_loaded_models) == 5


def test_a_clone_shares_the_model_and_its_donors(host: Host) -> None:
    model = placed(host)
    expected = host.sample(model)
    before = host.used()
    clone = model.clone()
    assert clone.placement is model.placement
    assert torch.equal(host.sample(clone), expected)
    assert host.used() == before
    assert clone.is_clone(model) and clone.clone_has_same_weights(model)


def test_a_donor_that_has_become_too_small_keeps_what_fits(host: Host) -> None:
    model = placed(host, "npu:0,1mb;npu:1,*")
    expected = host.sample(model)
    full = host.used()
    host.management.unload_all_models()
    needed = int(host.management.minimum_inference_memory())
    simdev.set_capacity(1, needed + MIB)
    assert torch.equal(host.sample(model), expected)
    assert 0 < host.used()[1] < full[1]
    assert any(layer.weight.device.type == "cpu" for _, layer in model.lent_layers())


def test_a_compute_device_that_has_become_too_small_is_loaded_in_part(host: Host) -> None:
    model = placed(host, "npu:0,2mb;npu:1,*")
    expected = host.sample(model)
    full = host.used()
    host.management.unload_all_models()
    simdev.set_capacity(0, int(host.management.minimum_inference_memory()) + MIB)
    assert torch.equal(host.sample(model), expected)
    assert 0 < host.used()[0] < full[0]
    assert host.used()[1] == full[1]


def test_partial_unloading_and_loading_more(host: Host) -> None:
    model = placed(host, "npu:0,2mb;npu:1,*")
    expected = host.sample(model)
    loaded = model.loaded_size()
    freed = model.partially_unload(torch.device("cpu"), 500_000)
    assert freed >= 500_000
    assert model.loaded_size() == loaded - freed
    assert torch.equal(host.sample(model), expected)


@pytest.mark.parametrize("needs_more", [False, True])
def test_eject_makes_the_room_that_the_plan_needs_and_no_more(host: Host, needs_more: bool) -> None:
    others = [adapter.load_diffusion_model(host.diffusion(), request(None, "npu:1")).value]
    host.management.load_models_gpu(others)
    before = host.used()[1]
    assert before > MIB
    reserve = int(host.management.minimum_inference_memory())
    simdev.set_capacity(1, reserve + before + (1 << 19 if needs_more else 64 * MIB))
    path = host.diffusion()
    adapter.load_diffusion_model(path, request("npu:0,0mb;npu:1,*", eject_models=True))
    assert (host.used()[1] < before) == needs_more
    simdev.set_capacity(1, CAPACITY_BYTES)


def test_release_frees_one_device_or_all(host: Host) -> None:
    model = placed(host)
    host.management.load_models_gpu([model])
    before = loaded_on(host)
    assert adapter.release("npu:1") == before["npu:1"]
    assert host.used()[1] == 0 and host.used()[0] > 0
    assert adapter.release() == before["npu:0"] + before["npu:2"]
    assert host.used() == [0] * 4


def test_an_interrupted_load_leaves_a_model_that_can_be_loaded_again(host: Host) -> None:
    model = placed(host, "npu:0,2mb;npu:1,*")
    expected = host.sample(model)
    host.management.unload_all_models()
    simdev.set_capacity(0, MIB)
    with pytest.raises(torch.OutOfMemoryError):
        model.load(torch.device("npu:0"), full_load=True)
    model.detach()
    simdev.set_capacity(0, CAPACITY_BYTES)
    assert torch.equal(host.sample(model), expected)


def test_weights_that_the_host_lends_are_page_locked_and_stay_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: dict[int, int] = {}

    def lock(tensor: torch.Tensor) -> bool:
        assert tensor.device.type == "cpu" and tensor.data_ptr() not in locked
        locked[tensor.data_ptr()] = tensor.nbytes
        return True

    monkeypatch.setattr(host.management, "pin_memory", lock)
    monkeypatch.setattr(host.management, "unpin_memory", lambda tensor: locked.pop(tensor.data_ptr()))
    model = placed(host, "npu:0,1mb;npu:1,1mb;cpu,*")
    lent = sum(
        parameter.nbytes
        for name, layer in model.lent_layers()
        if model.placement.homes[name].type == "cpu"
        for parameter in layer.parameters()
    )
    host.sample(model)
    assert sum(locked.values()) == lent
    host.sample(host.lora(model, 1.0))  # a clone that is gone afterwards
    host.sample(model)
    assert sum(locked.values()) == lent
    host.management.unload_all_models()
    assert locked == {}
