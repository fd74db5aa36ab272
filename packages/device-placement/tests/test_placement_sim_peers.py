"""Accelerators that cannot reach each other: noticed by a pattern, and served through the host."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from placement_models import Machine, accelerator, example_input, plan_for, stack

from device_placement import AcceleratorBackend, PeerCopyError, place
from device_placement.machine import _copies as peer


@pytest.fixture
def machine(sim: types.ModuleType) -> Machine:
    return accelerator(sim, donors=("sim:1", "sim:2"))


def test_a_sound_link_survives_the_pattern(sim: types.ModuleType) -> None:
    assert peer.survives(torch.device("sim:1"), torch.device("sim:0"))
    assert peer.survives(torch.device("sim:1"), torch.device("sim:0"), peer.through_host)


def test_a_corrupt_link_does_not(sim: types.ModuleType) -> None:
    sim.corrupt_link(1, 0)
    assert not peer.survives(torch.device("sim:1"), torch.device("sim:0"))
    assert peer.survives(torch.device("sim:1"), torch.device("sim:0"), peer.through_host)
    assert peer.survives(torch.device("sim:2"), torch.device("sim:0"))


def test_a_corrupt_link_is_avoided_and_the_other_is_not(
    sim: types.ModuleType, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    sim.corrupt_link(1, 0)
    model, x = stack(6), example_input().to("sim:0")
    expected = model(example_input())
    plan = plan_for(
        model,
        machine,
        home=lambda name: f"sim:{1 + int(name.split('.')[1]) % 2}" if name.startswith("blocks") else None,
    )
    with caplog.at_level(logging.WARNING), place(model, plan, backend=machine.make_backend()), torch.no_grad():
        assert "copies from sim:1 to sim:0 deliver wrong bytes; they go through the host" in caplog.text
        assert torch.equal(model(x).cpu(), expected)
        links_before = {(link.src, link.dst): link.bytes for link in sim.links()}
        syncs = sim.counters().host_syncs
        results = [model(x) for _ in range(3)]
        assert sim.counters().host_syncs == syncs
        links = {(link.src, link.dst): link.bytes for link in sim.links()}
        share = 3 * 3 * plan.slot_bytes
        assert links["sim:1", "host"] - links_before["sim:1", "host"] == share
        assert links["host", "sim:0"] - links_before["host", "sim:0"] == share
        assert links["sim:2", "sim:0"] - links_before["sim:2", "sim:0"] == share
        assert ("sim:1", "sim:0") not in links or links["sim:1", "sim:0"] == links_before["sim:1", "sim:0"]
        assert all(torch.equal(result.cpu(), expected) for result in results)


def test_the_pattern_is_sent_once_a_backend(sim: types.ModuleType, machine: Machine) -> None:
    backend = machine.make_backend()
    model = stack()
    plan = plan_for(model, machine)
    sim.reset()
    place(model, plan, backend=backend).remove(to="cpu")
    first = sum(link.count for link in sim.links() if link.src == "host")
    sim.reset()
    place(model, plan, backend=backend).remove(to="cpu")
    assert sum(link.count for link in sim.links() if link.src == "host") < first


def test_a_donor_whose_bytes_never_arrive_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack()
    before = [parameter.data_ptr() for parameter in model.parameters()]
    monkeypatch.setattr(peer, "survives", lambda *arguments: False)
    with pytest.raises(PeerCopyError, match=r"from sim:1 to sim:0 arrived changed.*take sim:1 off") as caught:
        place(model, plan_for(model, machine), backend=AcceleratorBackend())
    assert (caught.value.source, caught.value.target) == ("sim:1", "sim:0")
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_hops_go_with_the_slots(sim: types.ModuleType, machine: Machine) -> None:
    sim.corrupt_link(1, 0)
    model, x = stack(6), example_input()
    plan = plan_for(model, machine, home=lambda name: "sim:1" if name.startswith("blocks") else None)
    pinned = sim.pinned_bytes()
    with place(model, plan, backend=machine.make_backend()) as handle:
        for slots in (2, 4, 1):
            handle.resize(slots=slots)
            machine.run(model, x)
            assert sim.pinned_bytes() - pinned == slots * plan.slot_bytes
    assert sim.pinned_bytes() == pinned
