"""Placed models that are cloned, given up, freed twice, cut short and pressed for room, in any order."""

from __future__ import annotations

import gc
import weakref
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


def placed(host: Host, spec: str = SPEC, device: str = "npu:0", kind: str = "plain") -> Any:
    load = adapter.load_gguf_diffusion_model if kind == "packed" else adapter.load_diffusion_model
    return load(host.diffusion(kind), request(spec, device)).value


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_clone_outlives_its_parent(host: Host, kind: str) -> None:
    model = placed(host, kind=kind)
    expected = host.sample(model)
    clone = model.clone()
    clone.parent = None  # older and newer hosts differ in whether a clone holds it
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert torch.equal(host.sample(clone), expected)
    host.management.unload_all_models()
    assert torch.equal(host.sample(clone), expected)


def test_a_parent_outlives_a_patched_clone(host: Host) -> None:
    model = placed(host)
    expected = host.sample(model)
    patched = host.lora(model, 1.0)
    host.sample(patched)
    del patched
    gc.collect()
    assert torch.equal(host.sample(model), expected)
    assert not any(getattr(layer, "weight_function", ()) for _, layer in model.lent_layers())


def test_the_last_clone_takes_the_model_and_its_donors_with_it(host: Host) -> None:
    model = placed(host)
    clone = model.clone()
    host.sample(clone)
    network = weakref.ref(model.model)
    banks = [weakref.ref(bank) for bank in model.placement.banks]
    del model, clone
    gc.collect()
    host.management.cleanup_models()
    gc.collect()
    assert network() is None
    assert [bank() for bank in banks] == [None, None]
    assert host.used() == [0] * 4


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_freed_twice_is_freed_once(host: Host, kind: str) -> None:
    model = placed(host, kind=kind)
    expected = host.sample(model)
    for _ in range(2):
        model.detach()
        for bank in model.placement.banks:
            bank.detach()
    assert host.used() == [0] * 4
    for _ in range(2):
        host.management.unload_all_models()
        adapter.release()
    assert host.management.current_loaded_models == []
    assert torch.equal(host.sample(model), expected)


def test_giving_back_more_than_is_there_gives_what_is_there(host: Host) -> None:
    model = placed(host, "npu:0,2mb;npu:1,*")
    expected = host.sample(model)
    (bank,) = model.placement.banks
    for patcher in (model, bank):
        before = patcher.loaded_size()
        freed = patcher.partially_unload(torch.device("cpu"), 1 << 40)
        assert 0 < freed <= before
        assert patcher.loaded_size() == before - freed
        assert patcher.partially_unload(torch.device("cpu"), 1 << 40) == 0
    assert host.used()[1] == 0
    assert torch.equal(host.sample(model), expected)


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_donor_that_is_evicted_between_two_steps_changes_nothing(host: Host, kind: str) -> None:
    model = placed(host, kind=kind)
    expected = host.sample(model)
    seen: list[int] = []

    def evict(step: int) -> None:
        host.management.free_memory(1e30, torch.device("npu:1"))
        seen.append(host.used()[1])

    assert torch.equal(host.sample(model, after_step=evict), expected)
    assert seen == [0, 0]
    assert torch.equal(host.sample(model), expected)
    assert host.used()[1] > 0


def test_an_interrupted_sampling_can_be_run_again(host: Host) -> None:
    model = host.lora(placed(host), 1.0)
    expected = host.sample(model)
    before = host.used()

    def interrupt(step: int) -> None:
        raise host.management.InterruptProcessingException

    with pytest.raises(host.management.InterruptProcessingException):
        host.sample(model, after_step=interrupt)
    assert host.used() == before
    assert torch.equal(host.sample(model), expected)


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_donor_that_is_full_in_the_middle_gives_back_what_it_took(
    host: Host, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The host believes in more memory than there is: another program has taken it meanwhile."""
    model = placed(host, "npu:0,100kb;npu:1,*", kind=kind)
    expected = host.sample(model)
    host.management.unload_all_models()
    simdev.set_capacity(1, MIB // 2)

    def believed(device: object = None, torch_free_too: bool = False) -> object:
        return (CAPACITY_BYTES, CAPACITY_BYTES) if torch_free_too else CAPACITY_BYTES

    with monkeypatch.context() as patch:
        patch.setattr(host.management, "get_free_memory", believed)
        with pytest.raises(torch.OutOfMemoryError):
            host.sample(model)
    host.free_all()
    assert host.used() == [0] * 4
    assert all(parameter.device.type == "cpu" for parameter in model.model.parameters())
    simdev.set_capacity(1, CAPACITY_BYTES)
    assert torch.equal(host.sample(model), expected)


def test_a_compute_device_without_room_for_one_layer_fails_and_recovers(host: Host) -> None:
    model = placed(host, "npu:0,0mb;npu:1,*")
    expected = host.sample(model)
    simdev.set_capacity(0, host.used()[0] + 4096)
    with pytest.raises(torch.OutOfMemoryError):
        host.sample(model)
    simdev.set_capacity(0, CAPACITY_BYTES)
    assert torch.equal(host.sample(model), expected)


def test_models_that_press_each_other_off_a_donor_take_turns(host: Host) -> None:
    spec = "npu:0,100kb;npu:1,*"
    first, second = placed(host, spec), placed(host, spec)
    expected = host.sample(first)
    reserve = int(host.management.minimum_inference_memory())
    simdev.set_capacity(1, reserve + host.used()[1] + MIB)  # room for one of the two
    for model, other in ((second, first), (first, second), (second, first)):
        assert torch.equal(host.sample(model), expected)
        ((bank,), (pressed,)) = (model.placement.banks, other.placement.banks)
        assert bank.loaded_size() == bank.model_size() > pressed.loaded_size()
        counted = names_of(host.management.loaded_models())
        assert counted["npu:1"] <= host.used()[1] <= counted["npu:1"] + 512 * 400


def test_a_donor_that_also_computes_for_another_model(host: Host) -> None:
    lender, computing = placed(host, "npu:0,100kb;npu:1,*"), placed(host, "npu:1,1mb;npu:0,*", "npu:1")
    patched = host.lora(computing, 0.5)
    expected, changed = host.sample(lender), host.sample(host.lora(lender, 0.5))
    for model, wanted in ((patched, changed), (lender, expected), (computing, expected), (patched, changed)):
        assert torch.equal(host.sample(model), wanted)
        assert names_of(host.management.loaded_models()).keys() == {"npu:0", "npu:1"}


def test_strengths_that_follow_each_other_leave_no_trace(host: Host) -> None:
    stock = host.stock(host.diffusion())
    expected = {strength: host.sample(host.lora(stock, strength)) for strength in (1.0, -0.5)}
    plain = host.sample(stock)
    host.free_all()
    model = placed(host)
    for strength in (1.0, -0.5, 1.0):
        assert torch.equal(host.sample(host.lora(model, strength)), expected[strength])
        host.management.free_memory(1e30, torch.device("npu:0"))
        assert torch.equal(host.sample(host.lora(model, strength)), expected[strength])
        assert torch.equal(host.sample(model), plain)
