"""The arithmetic under the policies: subsets of tensors, even shares, bytes handed out in order."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_placement.planning._fill_in_order import fill_in_order
from device_placement.planning._selection import MINOR_FRACTION, Movable, _cyclic_gap, interleaved, tiers
from device_placement.planning._stripe import RESOLUTION, SMALL_FRACTION, _menu, striped

sizes = st.lists(st.integers(0, 1000), min_size=1, max_size=8).map(tuple)
equal_units = st.builds(
    lambda shape, count: [Movable(sizes=tuple(shape), weight=1.0)] * count,
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.integers(1, 4),
)


@st.composite
def handouts(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    items = draw(st.lists(st.integers(0, 100), max_size=20))
    amounts = draw(st.lists(st.integers(0, 400), min_size=1, max_size=4))
    return items, amounts, draw(st.integers(0, len(amounts) - 1))


@given(handouts())
def test_devices_follow_each_other_along_the_items(handout: tuple[list[int], list[int], int]) -> None:
    homes = fill_in_order(*handout)
    assert homes == sorted(homes)


@given(handouts())
def test_no_device_but_the_elastic_one_gets_more_than_its_amount(handout: tuple[list[int], list[int], int]) -> None:
    items, amounts, elastic = handout
    homes = fill_in_order(items, amounts, elastic)
    for device, amount in enumerate(amounts):
        if device != elastic:
            assert sum(size for size, home in zip(items, homes, strict=True) if home == device) <= amount


@given(handouts())
def test_a_device_that_could_take_the_next_item_takes_it(handout: tuple[list[int], list[int], int]) -> None:
    items, amounts, elastic = handout
    homes = fill_in_order(items, amounts, elastic)
    elastic_items = [size for size, home in zip(items, homes, strict=True) if home == elastic]
    if not elastic_items:
        return
    for device, amount in enumerate(amounts):
        got = [size for size, home in zip(items, homes, strict=True) if home == device]
        neighbour = elastic_items[0] if device == elastic - 1 else elastic_items[-1] if device == elastic + 1 else None
        if neighbour is not None:
            assert sum(got) + neighbour > amount


@given(sizes)
def test_a_menu_goes_from_nothing_to_everything_in_steps(shape: tuple[int, ...]) -> None:
    menu = _menu(shape)
    assert menu.sums[0] == 0 and menu.sums[-1] == sum(shape)
    assert list(menu.sums) == sorted(set(menu.sums))
    assert len(menu.midpoints) == len(menu.sums) - 1


@given(sizes)
def test_every_offer_of_a_menu_is_the_sum_of_its_tensors(shape: tuple[int, ...]) -> None:
    menu = _menu(shape)
    for total, tensors in zip(menu.sums, menu.tensors, strict=True):
        assert sum(shape[index] for index in tensors) == total


@given(sizes)
def test_every_sum_of_large_tensors_is_offered_within_the_resolution(shape: tuple[int, ...]) -> None:
    menu = _menu(shape)
    total = sum(shape)
    large = [size for size in shape if size and size * SMALL_FRACTION >= total]
    for count in range(len(large) + 1):
        for chosen in combinations(large, count):
            assert min(abs(sum(chosen) - offered) for offered in menu.sums) <= len(large) * total / RESOLUTION


def test_of_equal_sums_the_one_of_fewest_tensors_is_offered() -> None:
    menu = _menu((40, 20, 20, 10, 10, 10, 10))
    assert menu.tensors[menu.sums.index(40)] == {0}
    assert len(menu.tensors[menu.sums.index(60)]) == 2


def test_small_tensors_are_offered_only_with_all_others() -> None:
    menu = _menu((1000, 1000, 1, 2))
    assert menu.sums == (0, 1000, 2000, 2003)


@given(equal_units, st.data())
@settings(max_examples=60)
def test_no_choice_of_whole_tensors_has_a_heaviest_share_much_below(units: list[Movable], data: st.DataObject) -> None:
    """Against every choice there is: the heaviest share is within one tensor of the best possible."""
    total = sum(unit.size_bytes for unit in units)
    need = data.draw(st.integers(0, total))
    chosen = striped(units, slots=2)(need)
    heaviest = max(sum(unit.sizes[i] for i in tensors) for unit, tensors in zip(units, chosen, strict=True))
    reachable = sorted({sum(c) for n in range(len(units[0].sizes) + 1) for c in combinations(units[0].sizes, n)})
    best = min(max(shares) for shares in product(reachable, repeat=len(units)) if sum(shares) >= need)
    assert heaviest <= best + max(units[0].sizes)


@given(equal_units, st.data())
def test_what_is_streamed_in_excess_is_less_than_the_smallest_tensor_or_could_not_be_helped(
    units: list[Movable], data: st.DataObject
) -> None:
    total = sum(unit.size_bytes for unit in units)
    need = data.draw(st.integers(0, total))
    chosen = striped(units, slots=2)(need)
    streamed = sum(unit.sizes[i] for unit, tensors in zip(units, chosen, strict=True) for i in tensors)
    assert need <= streamed
    assert streamed - need < max(units[0].sizes) or need == 0


@given(equal_units, st.data())
def test_no_unit_could_stream_less_without_missing_the_need(units: list[Movable], data: st.DataObject) -> None:
    need = data.draw(st.integers(0, sum(unit.size_bytes for unit in units)))
    chosen = striped(units, slots=2)(need)
    shares = [sum(unit.sizes[i] for i in tensors) for unit, tensors in zip(units, chosen, strict=True)]
    for unit, share in zip(units, shares, strict=True):
        for offer in _menu(unit.sizes).sums:
            assert offer >= share or sum(shares) - share + offer < need


def test_the_end_of_a_pass_is_next_to_the_start_of_the_following() -> None:
    assert _cyclic_gap(0, [9], 10) == _cyclic_gap(9, [0], 10) == 1
    assert _cyclic_gap(5, [0, 8], 10) == 3
    assert _cyclic_gap(5, [], 10) == 10


@given(st.lists(st.tuples(sizes, st.floats(0, 10)), min_size=1, max_size=6), st.sampled_from(["stripe", "interleave"]))
def test_asked_for_everything_everything_streams_and_for_nothing_nothing(
    shapes: list[tuple[tuple[int, ...], float]], policy: str
) -> None:
    units = [Movable(sizes=shape, weight=weight) for shape, weight in shapes]
    select = striped(units, slots=2) if policy == "stripe" else interleaved(units)
    total = sum(unit.size_bytes for unit in units)
    for need, expected in ((0, 0), (total, total)):
        chosen = select(need)
        assert sum(unit.sizes[i] for unit, tensors in zip(units, chosen, strict=True) for i in tensors) == expected


@given(st.lists(st.tuples(sizes, st.floats(0, 10)), max_size=8))
def test_tiers_hold_every_unit_with_bytes_once(shapes: list[tuple[tuple[int, ...], float]]) -> None:
    units = [Movable(sizes=shape, weight=weight) for shape, weight in shapes]
    major, minor = tiers(units)
    assert sorted([*major, *minor]) == [index for index, unit in enumerate(units) if unit.size_bytes]
    assert all(units[index].weight > 0 for index in major)


def test_a_unit_is_minor_when_it_computes_less_than_a_quarter_of_the_average_byte() -> None:
    block = Movable(sizes=(100,), weight=1.0)
    quarter = Movable(sizes=(1,), weight=MINOR_FRACTION)
    less = Movable(sizes=(1,), weight=MINOR_FRACTION * 0.9)
    assert tiers([block, quarter, less, block]) == ([0, 1, 3], [2])


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 50])
def test_more_slots_than_units_are_no_reason_to_fail(slots: int) -> None:
    units = [Movable(sizes=(10, 10), weight=1.0)] * 4
    assert sum(len(tensors) for tensors in striped(units, slots=slots)(40)) == 4
