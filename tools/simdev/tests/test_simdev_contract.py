"""One contract for a device, two targets: the simulated one, and CUDA with SIMDEV_TARGET=cuda on a machine that has it.

Whatever holds here on both is what the other tests may take from the simulation as true of a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

TARGET = os.environ.get("SIMDEV_TARGET", "sim")
MIB = 1 << 20

Make = Callable[..., torch.Tensor]
Place = Callable[[int], torch.device]

pytestmark = [pytest.mark.simdev] if TARGET == "sim" else []


@pytest.fixture
def on(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Yield what makes device number i of the target."""
    if TARGET == "sim":
        request.getfixturevalue("sim")
    elif torch.accelerator.current_accelerator(check_available=True) != torch.device(TARGET):
        pytest.fail(f"SIMDEV_TARGET={TARGET}, and torch sees no such accelerator", pytrace=False)
    yield lambda index: torch.device(TARGET, index)
    torch.accelerator.synchronize()
    torch.accelerator.empty_cache()  # a real device keeps a cache


@pytest.fixture
def peer(on: Place) -> torch.device:
    """Return a second device."""
    if torch.accelerator.device_count() < 2:
        pytest.skip("needs two devices")
    return on(1)


OPERATORS: dict[str, Callable[[Make, Make], torch.Tensor]] = {
    "linear": lambda a, b: F.linear(a(4, 8), b(6, 8)),
    "linear with bias": lambda a, b: F.linear(a(4, 8), a(6, 8), b(6)),
    "addmm": lambda a, b: torch.addmm(a(6), a(4, 8), b(8, 6)),
    "bmm": lambda a, b: torch.bmm(a(2, 4, 8), b(2, 8, 3)),
    "conv1d": lambda a, b: F.conv1d(a(1, 3, 8), b(4, 3, 3)),
    "conv2d": lambda a, b: F.conv2d(a(1, 3, 8, 8), b(4, 3, 3, 3)),
    "conv3d": lambda a, b: F.conv3d(a(1, 2, 4, 4, 4), b(3, 2, 3, 3, 3)),
    "layer_norm": lambda a, b: F.layer_norm(a(4, 8), (8,), b(8), a(8)),
    "rms_norm": lambda a, b: F.rms_norm(a(4, 8), (8,), b(8)),
    "group_norm": lambda a, b: F.group_norm(a(2, 4, 8), 2, b(4), a(4)),
    "sdpa": lambda a, b: F.scaled_dot_product_attention(a(1, 2, 4, 8), b(1, 2, 4, 8), a(1, 2, 4, 8)),
    "add": lambda a, b: a(4, 8) + b(4, 8),
    "add in place": lambda a, b: a(4, 8).add_(b(4, 8)),
    "lerp": lambda a, b: torch.lerp(a(4), b(4), 0.5),
    "cat": lambda a, b: torch.cat([a(4), b(4)]),
    "stack": lambda a, b: torch.stack([a(4), b(4)]),
    "embedding": lambda a, b: F.embedding(a(3).long(), b(9, 4)),
    "gather": lambda a, b: torch.gather(a(2, 3), 1, b(2, 1).long()),
    "where": lambda a, b: torch.where(a(4) > 0, a(4), b(4)),
    "index_select": lambda a, b: torch.index_select(a(4, 2), 0, b(1).long()),
    "bool mask": lambda a, b: torch.masked_select(a(4), b(4) > 0),
}


def maker(device: torch.device) -> Make:
    return lambda *shape: torch.ones(*shape, device=device)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_tensor_left_on_the_host_is_refused(on: Place, operator: str) -> None:
    with pytest.raises(RuntimeError, match=r"device|cuda|type"):
        OPERATORS[operator](maker(on(0)), maker(torch.device("cpu")))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_tensor_on_a_peer_is_refused(on: Place, peer: torch.device, operator: str) -> None:
    with pytest.raises(RuntimeError, match=r"device|cuda|type"):
        OPERATORS[operator](maker(on(0)), maker(peer))


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_result_is_on_the_device_of_the_arguments(on: Place, operator: str) -> None:
    last = torch.accelerator.device_count() - 1
    assert OPERATORS[operator](maker(on(last)), maker(on(last))).device == on(last)


def test_a_host_number_may_take_part(on: Place) -> None:
    assert (torch.ones(3, device=on(0)) + torch.tensor(2.0)).device == on(0)


def test_a_host_number_cannot_take_a_result(on: Place) -> None:
    with pytest.raises(RuntimeError):
        torch.tensor(2.0).add_(torch.tensor(1.0, device=on(0)))


def test_a_host_index_may_index(on: Place) -> None:
    assert torch.ones(3, 2, device=on(0))[torch.tensor([0, 1])].device == on(0)


def test_an_index_on_a_peer_may_not(on: Place, peer: torch.device) -> None:
    with pytest.raises(RuntimeError):
        torch.ones(3, 2, device=on(0))[torch.tensor([0, 1], device=peer)]


def test_a_device_that_is_not_there_is_refused(on: Place) -> None:
    with pytest.raises(RuntimeError, match=r"ordinal|device"):
        torch.empty(1, device=on(torch.accelerator.device_count()))


def test_a_device_that_is_not_there_cannot_be_current(on: Place) -> None:
    before = torch.accelerator.current_device_index()
    with pytest.raises(RuntimeError, match=r"ordinal|device"):
        torch.accelerator.set_device_index(torch.accelerator.device_count())
    assert torch.accelerator.current_device_index() == before


def test_too_much_memory_raises_the_class_that_callers_catch(on: Place) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device=on(0))


def test_a_view_keeps_its_memory_and_costs_none(on: Place) -> None:
    before = torch.accelerator.memory_allocated(0)
    whole = torch.empty(8 * MIB, dtype=torch.uint8, device=on(0))
    part = whole[1:]
    assert torch.accelerator.memory_allocated(0) - before == 8 * MIB
    del whole
    assert torch.accelerator.memory_allocated(0) - before == 8 * MIB
    del part
    assert torch.accelerator.memory_allocated(0) == before


def test_the_peak_outlives_the_tensor_until_it_is_reset(on: Place) -> None:
    torch.accelerator.reset_peak_memory_stats(0)
    before = torch.accelerator.memory_allocated(0)
    del_me = torch.empty(8 * MIB, dtype=torch.uint8, device=on(0))
    del del_me
    assert torch.accelerator.max_memory_allocated(0) - before == 8 * MIB
    torch.accelerator.reset_peak_memory_stats(0)
    assert torch.accelerator.max_memory_allocated(0) == before


def test_free_memory_is_told(on: Place) -> None:
    free, total = torch.accelerator.get_memory_info(0)
    assert 0 < free <= total


def test_an_event_orders_a_prefetch(on: Place) -> None:
    weight = torch.randn(256, 256).pin_memory()
    x = torch.randn(4, 256, device=on(0))
    main, side = torch.accelerator.current_stream(0), torch.Stream(device=on(0))
    with side:
        fetched = weight.to(on(0), non_blocking=True)
        event = side.record_event()
    main.wait_event(event)
    y = x @ fetched
    fetched.record_stream(main)
    assert torch.allclose(y.cpu(), x.cpu() @ weight, rtol=1e-2, atol=1e-2)


def test_a_ring_of_one_slot_serves_many_weights(on: Place) -> None:
    weights = [torch.randn(64, 64).pin_memory() for _ in range(5)]
    x = torch.eye(64, device=on(0))
    slot = torch.empty(64, 64, device=on(0))
    main, side = torch.accelerator.current_stream(0), torch.Stream(device=on(0))
    side.wait_stream(main)
    results = []
    for weight in weights:
        with side:
            slot.copy_(weight, non_blocking=True)
        main.wait_stream(side)
        results.append(x @ slot)
        side.wait_stream(main)
    torch.accelerator.synchronize(0)
    for weight, result in zip(weights, results, strict=True):
        assert torch.allclose(result.cpu(), weight, rtol=1e-2, atol=1e-2)


def test_an_event_that_was_never_recorded_is_over(on: Place) -> None:
    event = torch.Event(device=on(0))
    event.synchronize()
    assert event.query()
    torch.accelerator.current_stream(0).wait_event(event)


def test_asking_an_event_ends(on: Place) -> None:
    side = torch.Stream(device=on(0))
    with side:
        fetched = torch.ones(MIB).pin_memory().to(on(0), non_blocking=True)
        event = side.record_event()
    asked = 0
    while not event.query():
        asked += 1
    torch.accelerator.current_stream(0).wait_event(event)
    assert fetched.sum().item() == MIB


def test_a_stream_is_current_inside_its_with_only(on: Place) -> None:
    before = torch.accelerator.current_stream(0)
    side = torch.Stream(device=on(0))
    with side:
        assert torch.accelerator.current_stream(0) == side
    assert torch.accelerator.current_stream(0) == before != side


def test_streams_come_from_a_pool_of_32(on: Place) -> None:
    streams = [torch.Stream(device=on(0)) for _ in range(64)]
    assert len({stream.stream_id for stream in streams}) == 32


def test_a_device_without_an_index_is_the_current_one(on: Place, peer: torch.device) -> None:
    with torch.accelerator.device_index(peer.index):
        stream, event = torch.Stream(device=TARGET), torch.Event(device=TARGET)
        with stream:
            made = torch.ones(2, device=TARGET)
            event.record()
        event.synchronize()
    assert stream.device == made.device == peer


def test_the_device_is_current_inside_its_with_only(on: Place, peer: torch.device) -> None:
    before = torch.accelerator.current_device_index()
    with torch.accelerator.device_index(peer.index):
        assert torch.empty(1, device=TARGET).device == peer
    assert torch.accelerator.current_device_index() == before


def test_pageable_memory_may_be_overwritten_once_its_copy_is_issued(on: Place) -> None:
    source = torch.ones(MIB)
    copy = source.to(on(0), non_blocking=True)
    source.zero_()
    assert copy.sum().item() == MIB


def test_a_copy_into_pageable_memory_is_over_when_it_returns(on: Place) -> None:
    target = torch.zeros(MIB)
    target.copy_(torch.ones(MIB, device=on(0)), non_blocking=True)
    assert target.sum().item() == MIB


def test_a_blocking_copy_is_over_when_it_returns(on: Place) -> None:
    pinned = torch.zeros(MIB).pin_memory()
    pinned.copy_(torch.ones(MIB, device=on(0)))
    assert pinned.sum().item() == MIB


def test_a_copy_into_pinned_memory_is_over_after_synchronize(on: Place) -> None:
    pinned = torch.zeros(MIB).pin_memory()
    pinned.copy_(torch.ones(MIB, device=on(0)), non_blocking=True)
    torch.accelerator.synchronize(0)
    assert pinned.sum().item() == MIB


def test_a_copy_between_devices_waits_for_both(on: Place, peer: torch.device) -> None:
    source = torch.ones(MIB, device=peer)
    source.mul_(3)
    target = torch.zeros(MIB, device=on(0))
    target.add_(1)
    target.copy_(source, non_blocking=True)
    target.add_(1)
    source.zero_()
    assert (target == 4).all().item()


@pytest.mark.parametrize("non_blocking", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "broadcast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_copy_converts_and_gathers(
    on: Place, non_blocking: bool, layout: str, dtype: torch.dtype, pinned: bool
) -> None:
    base = torch.arange(64.0).reshape(8, 8)
    base = base.pin_memory() if pinned else base
    source = {"contiguous": base, "transposed": base.T, "strided": base[:, ::2], "broadcast": base[:1]}[layout]
    shape = (8, 8) if layout == "broadcast" else source.shape
    target = torch.empty(shape, dtype=dtype, device=on(0))
    target.copy_(source, non_blocking=non_blocking)
    back = torch.empty(shape, pin_memory=pinned)
    back.copy_(target, non_blocking=non_blocking)
    torch.accelerator.synchronize(0)
    assert torch.equal(back, source.expand(shape))


def test_pinned_memory_is_known_by_its_views(on: Place) -> None:
    assert torch.empty(8).pin_memory()[2:].is_pinned()
    assert torch.empty(8, pin_memory=True).is_pinned()
    assert not torch.empty(8).is_pinned()


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_survive_the_way_there_and_back(on: Place, dtype: torch.dtype) -> None:
    t = torch.randint(0, 4, (16, 16)).to(dtype)
    assert torch.equal(t.to(on(0)).cpu().view(torch.uint8), t.view(torch.uint8))


def test_bytes_survive_the_way_over_a_peer(on: Place, peer: torch.device) -> None:
    t = torch.randn(64, 64)
    assert torch.equal(t.to(peer).to(on(0)).cpu(), t)


def test_assigned_weights_stay_where_they_are(on: Place) -> None:
    module = torch.nn.Linear(4, 4, device="meta")
    state = {name: torch.ones(p.shape, device=on(0)) for name, p in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    assert module.weight.device == on(0)


def test_a_seed_repeats_random_numbers(on: Place) -> None:
    def draw() -> torch.Tensor:
        torch.manual_seed(7)
        return torch.randn(100, device=on(0))

    first, again, further = draw(), draw(), torch.randn(100, device=on(0))
    assert torch.equal(first, again)
    assert not torch.equal(first, further)


def test_a_generator_belongs_to_a_kind_of_device(on: Place) -> None:
    generator = torch.Generator(device=on(0)).manual_seed(3)
    assert torch.randn(4, device=on(0), generator=generator).device == on(0)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(4, device=on(0), generator=torch.Generator())


def test_gradients_flow_on_the_device(on: Place) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    model.to(on(0))(torch.ones(2, 8, device=on(0))).sum().backward()
    assert all(p.grad is not None and p.grad.device == on(0) for p in model.parameters())
