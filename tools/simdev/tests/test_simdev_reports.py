"""What the race detector says, to whom, and what a race does to the numbers."""

from __future__ import annotations

import contextlib
import re
import types

import pytest
import torch

SIZE = 64


def main() -> torch.Stream:
    return torch.accelerator.current_stream(0)


def pinned() -> torch.Tensor:
    return torch.ones(SIZE, SIZE).pin_memory()


def fetch(source: torch.Tensor, side: torch.Stream) -> tuple[torch.Tensor, torch.Event]:
    with side:
        return source.to(side.device, non_blocking=True), side.record_event()


def compute_without_waiting() -> None:
    fetched, _ = fetch(pinned(), torch.Stream(device="sim:0"))
    fetched + 1
    fetched.record_stream(main())


def test_reads_on_two_streams_are_no_race(sim: types.ModuleType) -> None:
    weight, side = torch.ones(SIZE, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(main())
    with side:
        weight + 1
    weight + 2
    weight.record_stream(side)
    main().wait_stream(side)


def test_an_answer_that_is_not_yet_yes_orders_nothing(sim: types.ModuleType) -> None:
    sim.config(race="record")
    fetched, event = fetch(pinned(), torch.Stream(device="sim:0"))
    assert not event.query()
    fetched + 1
    assert sim.take_violations()
    assert event.query()
    fetched + 1
    fetched.record_stream(main())
    assert not sim.take_violations()


def test_a_report_names_both_sides_and_the_remedy(sim: types.ModuleType) -> None:
    sim.config(race="record")
    compute_without_waiting()
    (report,) = sim.take_violations()
    assert re.fullmatch(
        r"aten::\w+ on stream 0 of sim:0 reads bytes \[0, 16384\) of a 16384-byte block on sim:0, and nothing orders "
        r"it after copy_ on stream \d+ of sim:0 \(write\); let the stream wait for an event recorded after that",
        report,
    )


def test_raise_stops_the_operator_that_commits_the_race(sim: types.ModuleType) -> None:
    fetched, event = fetch(pinned(), torch.Stream(device="sim:0"))
    with pytest.raises(RuntimeError, match=r"simdev race: aten::add"):
        fetched + 1
    assert len(sim.take_violations()) == 1
    main().wait_event(event)
    assert (fetched + 1).sum().item() == 2 * SIZE * SIZE


def test_a_swallowed_race_is_still_on_record(sim: types.ModuleType) -> None:
    with contextlib.suppress(RuntimeError):
        compute_without_waiting()
    assert len(sim.take_violations()) == 1


def test_a_free_too_early_is_recorded_and_does_not_raise(sim: types.ModuleType) -> None:
    source, side = torch.ones(SIZE, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(main())
    with side:
        source * 2
    del source
    (report,) = sim.take_violations()
    assert "is freed while aten::mul" in report
    assert "record_stream" in report


def test_taken_violations_are_gone(sim: types.ModuleType) -> None:
    sim.config(race="record")
    compute_without_waiting()
    assert sim.violations() == sim.violations() != ()
    assert sim.take_violations() != ()
    assert sim.violations() == sim.take_violations() == ()


@pytest.mark.parametrize("lazy", [True, False])
def test_a_copy_waits_in_its_queue_unless_devices_are_eager(sim: types.ModuleType, lazy: bool) -> None:
    sim.config(lazy=lazy, race="record")
    fetched, event = fetch(pinned(), torch.Stream(device="sim:0"))
    assert sim.counters().queued == lazy
    assert (fetched + 0).isnan().any().item() == lazy
    assert sim.take_violations(), "the verdict is the same"
    event.synchronize()


def test_a_forgotten_wait_reads_poison(sim: types.ModuleType) -> None:
    sim.config(race="record")
    fetched, event = fetch(pinned(), torch.Stream(device="sim:0"))
    too_early = fetched + 0
    main().wait_event(event)
    assert too_early.isnan().all()
    assert torch.equal((fetched + 0).cpu(), torch.ones(SIZE, SIZE))
    assert sim.take_violations()


def test_a_forgotten_wait_on_a_used_slot_reads_the_old_weight_and_only_the_clocks_see_it(sim: types.ModuleType) -> None:
    sim.config(race="record")
    slot, side = torch.zeros(SIZE, SIZE, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(main())
    with side:
        slot.copy_(pinned(), non_blocking=True)
    stale = slot.sum()
    main().wait_stream(side)
    assert stale.item() == 0
    assert len(sim.take_violations()) == 1


def test_making_a_view_is_no_access(sim: types.ModuleType) -> None:
    slot, side = torch.zeros(SIZE, SIZE, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(main())
    own = torch.zeros(4, 4, device="sim:0")
    own.copy_(torch.ones(4, 4).pin_memory(), non_blocking=True)
    with side:
        slot.copy_(pinned(), non_blocking=True)
    kernels = sim.counters().kernels
    views = [
        *(slot.T, slot[3], slot.view(-1), slot.reshape(2, -1), slot.unfold(0, 2, 1), slot.view(torch.int32)),
        *(slot.as_strided((2, 2), (1, 5)), slot.detach(), slot.diagonal(), slot.unbind()[1], slot[0].expand(3, -1)),
        *(torch.view_as_complex(slot.view(-1, 2)), torch.view_as_real(torch.view_as_complex(slot.view(-1, 2)))),
    ]
    assert own.unfold(0, 2, 1).shape == (3, 4, 2)
    assert (sim.counters().kernels, sim.counters().queued) == (kernels, 2)
    main().wait_stream(side)
    main().synchronize()
    assert all(view.untyped_storage().data_ptr() == slot.untyped_storage().data_ptr() for view in views)


def test_interleaved_views_count_with_their_gaps(sim: types.ModuleType) -> None:
    """A limit that is stated in the README: columns of one matrix share no byte, and are reported."""
    sim.config(race="record")
    matrix, side = torch.zeros(4, 4, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(main())
    with side:
        matrix[:, 0].fill_(1)
    matrix[:, 1].fill_(1)
    main().wait_stream(side)
    assert sim.take_violations()
