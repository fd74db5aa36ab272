"""The race detector by hand: each hazard of streams in a right version, which is clean, and a wrong one, reported.

A case takes `right` and leaves out one thing when it is False. What it leaves out is named by the test's id.
"""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

import simdev

SIZE = 64

Case = Callable[[bool], None]


def device(index: int = 0) -> torch.device:
    return torch.device("sim", index)


def main(index: int = 0) -> torch.Stream:
    return torch.accelerator.current_stream(index)


def pinned() -> torch.Tensor:
    return torch.ones(SIZE, SIZE).pin_memory()


def fetch(source: torch.Tensor, side: torch.Stream) -> tuple[torch.Tensor, torch.Event]:
    with side:
        return source.to(side.device, non_blocking=True), side.record_event()


def compute_waits_for_the_prefetch(right: bool, weight: torch.Tensor | None = None) -> None:
    fetched, event = fetch(pinned() if weight is None else weight, torch.Stream(device=device()))
    if right:
        main().wait_event(event)
    F.linear(torch.ones(2, SIZE, device=device()), fetched)
    fetched.record_stream(main())


def compute_waits_for_a_pageable_prefetch(right: bool) -> None:
    compute_waits_for_the_prefetch(right, pinned().clone())


def ask_until(over: Callable[[], bool]) -> None:
    while not over():
        pass


HOST_WAITS: dict[str, Callable[[torch.Stream, torch.Event], None]] = {
    "the event": lambda side, event: event.synchronize(),
    "the stream": lambda side, event: side.synchronize(),
    "the answer of the event": lambda side, event: ask_until(event.query),
    "the answer of the stream": lambda side, event: ask_until(side.query),
}


def host_waits_for(wait: Callable[[torch.Stream, torch.Event], None]) -> Case:
    def case(right: bool) -> None:
        side = torch.Stream(device=device())
        fetched, event = fetch(pinned(), side)
        if right:
            wait(side, event)
        fetched + 1
        fetched.record_stream(main())

    return case


def host_waits_for_the_right_device(right: bool) -> None:
    fetched, _ = fetch(pinned(), torch.Stream(device=device(1)))
    torch.accelerator.synchronize(1 if right else 0)
    fetched + 1
    fetched.record_stream(main(1))


def the_event_is_recorded_after_the_copy(right: bool) -> None:
    side = torch.Stream(device=device())
    early = side.record_event()
    fetched, late = fetch(pinned(), side)
    main().wait_event(late if right else early)
    fetched + 1
    fetched.record_stream(main())


def a_wait_covers_what_the_event_meant_when_it_was_issued(right: bool) -> None:
    side = torch.Stream(device=device())
    event = side.record_event()
    if not right:
        main().wait_event(event)
    fetched, _ = fetch(pinned(), side)
    side.record_event(event)
    if right:
        main().wait_event(event)
    fetched + 1
    fetched.record_stream(main())


def the_right_stream_waits(right: bool) -> None:
    other = torch.Stream(device=device())
    fetched, event = fetch(pinned(), torch.Stream(device=device()))
    (main() if right else other).wait_event(event)
    fetched + 1
    fetched.record_stream(main())


def a_wait_is_handed_on(right: bool) -> None:
    between = torch.Stream(device=device())
    fetched, event = fetch(pinned(), torch.Stream(device=device()))
    handed_on = between.record_event() if not right else None
    between.wait_event(event)
    main().wait_event(handed_on or between.record_event())
    fetched + 1
    fetched.record_stream(main())


def a_wait_crosses_devices(right: bool) -> None:
    fetched, event = fetch(pinned(), torch.Stream(device=device()))
    main(1).wait_event(event)
    if right:
        main(0).wait_event(main(1).record_event())
    fetched + 1
    fetched.record_stream(main())


def the_slot_is_refilled_after_its_use(right: bool) -> None:
    slot, x, side = (
        torch.empty(SIZE, SIZE, device=device()),
        torch.ones(2, SIZE, device=device()),
        torch.Stream(device=device()),
    )
    side.wait_stream(main())
    used: torch.Event | None = None
    for _ in range(3):
        if right and used is not None:
            side.wait_event(used)
        with side:
            slot.copy_(pinned(), non_blocking=True)
        main().wait_stream(side)
        x @ slot
        used = main().record_event()
    main().wait_stream(side)


def two_streams_do_not_write_the_same(right: bool) -> None:
    target, side = torch.zeros(SIZE, device=device()), torch.Stream(device=device())
    side.wait_stream(main())
    target.add_(1)
    if right:
        side.wait_stream(main())
    with side:
        target.mul_(2)
    main().wait_stream(side)


def the_first_use_waits_for_the_allocating_stream(right: bool) -> None:
    side = torch.Stream(device=device())
    zeros = torch.zeros(SIZE, device=device())
    if right:
        side.wait_stream(main())
    with side:
        zeros + 1
    main().wait_stream(side)


def a_result_is_used_after_it_was_computed(right: bool) -> None:
    side = torch.Stream(device=device())
    a = torch.ones(SIZE, device=device())
    side.wait_stream(main())
    result = a.roll(1)
    if right:
        side.wait_stream(main())
    with side:
        result + 1
    main().wait_stream(side)


def the_other_half_of_a_buffer_is_free(right: bool) -> None:
    both, side = torch.empty(2, SIZE, device=device()), torch.Stream(device=device())
    side.wait_stream(main())
    with side:
        both[1].copy_(torch.ones(SIZE).pin_memory(), non_blocking=True)
    both[0 if right else 1].fill_(0)
    main().wait_stream(side)


def a_block_in_use_elsewhere_is_recorded_before_it_is_freed(right: bool) -> None:
    source, side = torch.ones(SIZE, device=device()), torch.Stream(device=device())
    side.wait_stream(main())
    with side:
        source * 2
    if right:
        source.record_stream(side)
    del source


def a_block_in_use_elsewhere_is_waited_for_before_it_is_freed(right: bool) -> None:
    source, side = torch.ones(SIZE, device=device()), torch.Stream(device=device())
    side.wait_stream(main())
    with side:
        source * 2
    if right:
        main().wait_stream(side)
    del source


def a_staging_buffer_is_refilled_after_its_copy(right: bool) -> None:
    stage, slot = pinned(), torch.empty(SIZE, SIZE, device=device())
    with simdev.HostRaceMode():
        slot.copy_(stage, non_blocking=True)
        if right:
            main().record_event().synchronize()
        stage.fill_(0)
    main().synchronize()


def a_staging_buffer_may_be_read_during_its_copy(right: bool) -> None:
    stage, slot = pinned(), torch.empty(SIZE, SIZE, device=device())
    with simdev.HostRaceMode():
        slot.copy_(stage, non_blocking=True)
        stage.sum() if right else stage.zero_()
    main().synchronize()


def another_part_of_the_staging_buffer_is_free(right: bool) -> None:
    stage, slot = pinned(), torch.empty(SIZE, device=device())
    with simdev.HostRaceMode():
        slot.copy_(stage[0], non_blocking=True)
        stage[1 if right else 0].fill_(0)
    main().synchronize()


def a_result_is_read_after_it_came(right: bool) -> None:
    result = pinned()
    with simdev.HostRaceMode():
        result.copy_(torch.zeros(SIZE, SIZE, device=device()), non_blocking=True)
        if right:
            torch.accelerator.synchronize(0)
        result.sum()
    main().synchronize()


def a_peer_copy_waits_for_the_producer(right: bool) -> None:
    side = torch.Stream(device=device(1))
    source = torch.ones(SIZE, device=device(1))
    side.wait_stream(main(1))
    with side:
        source.mul_(2)
    if right:
        main(1).wait_stream(side)
    source.to(device(0), non_blocking=True)
    main(1).wait_stream(side)


def a_peer_copy_waits_for_the_last_reader_of_its_target(right: bool) -> None:
    side = torch.Stream(device=device(0))
    source, target = torch.ones(SIZE, device=device(1)), torch.zeros(SIZE, device=device(0))
    side.wait_stream(main(0))
    with side:
        target + 1
    if right:
        main(0).wait_stream(side)
    target.copy_(source, non_blocking=True)
    main(0).wait_stream(side)


def both_hops_of_a_bounce_are_ordered(right: bool) -> None:
    bounce, source = pinned(), torch.ones(SIZE, SIZE, device=device(1))
    bounce.copy_(source, non_blocking=True)
    if right:
        main(0).wait_event(main(1).record_event())
    target = bounce.to(device(0), non_blocking=True)
    target + 1
    main(1).synchronize()


def a_second_bounce_waits_for_the_first_to_leave(right: bool) -> None:
    bounce, source = pinned(), torch.ones(SIZE, SIZE, device=device(1))
    bounce.copy_(source, non_blocking=True)
    main(0).wait_stream(main(1))
    target = bounce.to(device(0), non_blocking=True)
    if right:
        main(1).wait_stream(main(0))
    bounce.copy_(source, non_blocking=True)
    torch.accelerator.synchronize(0)
    torch.accelerator.synchronize(1)
    del target


def an_out_argument_is_a_write(right: bool) -> None:
    a, out, side = torch.ones(SIZE, device=device()), torch.empty(SIZE, device=device()), torch.Stream(device=device())
    side.wait_stream(main())
    with side:
        torch.add(a, a, out=out)
    if right:
        main().wait_stream(side)
    out + 1
    main().wait_stream(side)


def a_list_of_weights_is_read_one_by_one(right: bool) -> None:
    weights, side = [torch.ones(SIZE, device=device()) for _ in range(3)], torch.Stream(device=device())
    side.wait_stream(main())
    with side:
        weights[2].mul_(2)
    if right:
        main().wait_stream(side)
    torch.cat(weights)
    main().wait_stream(side)


def a_resize_moves_bytes_that_are_there(right: bool) -> None:
    target, side = torch.ones(SIZE, device=device()), torch.Stream(device=device())
    target.record_stream(side)
    side.wait_stream(main())
    with side:
        target.mul_(2)
    if right:
        main().wait_stream(side)
    target.resize_(4 * SIZE)
    main().wait_stream(side)


def a_resized_tensor_is_used_after_the_resize(right: bool) -> None:
    target, side = torch.ones(SIZE, device=device()), torch.Stream(device=device())
    target.resize_(4 * SIZE)
    if right:
        side.wait_stream(main())
    with side:
        target[:SIZE] + 1
    target.record_stream(side)
    main().wait_stream(side)


CASES: dict[str, Case] = {f"the host waits for {what}": host_waits_for(wait) for what, wait in HOST_WAITS.items()}
CASES |= {
    case.__name__: case
    for case in (
        compute_waits_for_the_prefetch,
        compute_waits_for_a_pageable_prefetch,
        host_waits_for_the_right_device,
        the_event_is_recorded_after_the_copy,
        a_wait_covers_what_the_event_meant_when_it_was_issued,
        the_right_stream_waits,
        a_wait_is_handed_on,
        a_wait_crosses_devices,
        the_slot_is_refilled_after_its_use,
        two_streams_do_not_write_the_same,
        the_first_use_waits_for_the_allocating_stream,
        a_result_is_used_after_it_was_computed,
        the_other_half_of_a_buffer_is_free,
        a_block_in_use_elsewhere_is_recorded_before_it_is_freed,
        a_block_in_use_elsewhere_is_waited_for_before_it_is_freed,
        a_staging_buffer_is_refilled_after_its_copy,
        a_staging_buffer_may_be_read_during_its_copy,
        another_part_of_the_staging_buffer_is_free,
        a_result_is_read_after_it_came,
        a_peer_copy_waits_for_the_producer,
        a_peer_copy_waits_for_the_last_reader_of_its_target,
        both_hops_of_a_bounce_are_ordered,
        a_second_bounce_waits_for_the_first_to_leave,
        an_out_argument_is_a_write,
        a_list_of_weights_is_read_one_by_one,
        a_resize_moves_bytes_that_are_there,
        a_resized_tensor_is_used_after_the_resize,
    )
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_the_right_version_is_clean(sim: types.ModuleType, case: Case) -> None:
    case(True)
    assert sim.violations() == ()


@every_case
@pytest.mark.parametrize("lazy", [True, False])
def test_the_wrong_version_is_recorded_whenever_copies_run(sim: types.ModuleType, case: Case, lazy: bool) -> None:
    sim.config(race="record", lazy=lazy)
    case(True)
    assert not sim.take_violations()
    case(False)
    assert sim.take_violations()


def test_nothing_is_recorded_when_races_are_off(sim: types.ModuleType) -> None:
    sim.config(race="off")
    for case in CASES.values():
        case(False)
    assert sim.violations() == ()
