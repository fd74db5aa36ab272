"""The pictures: well-formed, true to the numbers, inside the paper, and safe with any name."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placement_trees import GIB, flux_seconds, flux_tree, machine, rest, tree_of, trees, unit

from alloc_spec import human_size
from block_discovery import BlockTree
from device_placement import (
    InvalidPlanError,
    PlacementPlan,
    Policy,
    plan,
    predict,
    render_svg,
    render_timeline_svg,
)
from device_placement.report._svg import COMPUTE_COLOUR, DONOR_COLOURS, MARGIN, WIDTH, lighter, ticks
from device_placement.report._svg_plan import device_colours

SVG = "{http://www.w3.org/2000/svg}"
HARDWARE = machine(8 * GIB, gb_per_second=6, donors=("cuda:1", "cpu"))
TREE = BlockTree(units=(*flux_tree().units, rest([100 << 20])))
PLAN = plan(TREE, "cuda:0,auto;cuda:1,1.5gb;cpu,*", HARDWARE)
ESTIMATE = predict(PLAN, HARDWARE, unit_seconds=flux_seconds(0.6))


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)


def boxes(picture: str, colour: str) -> list[ElementTree.Element]:
    return [element for element in parsed(picture).iter(f"{SVG}rect") if element.get("fill") == colour]


def bars(picture: str, colour: str) -> list[ElementTree.Element]:
    """Boxes of the bars along the model: those that say something under the pointer, below the strip."""
    return [b for b in boxes(picture, colour) if b.find(f"{SVG}title") is not None and float(b.get("y", 0)) > 100]


def texts(picture: str) -> list[str]:
    return ["".join(element.itertext()) for element in parsed(picture).iter(f"{SVG}text")]


def extent(element: ElementTree.Element) -> tuple[float, float, float, float]:
    x, y, width, height = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


@pytest.mark.parametrize("policy", ["stripe", "interleave", "contiguous", "legacy_tail"])
def test_bars_are_as_high_as_the_bytes_they_stand_for(policy: Policy) -> None:
    result = plan(TREE, "cuda:0,auto;cuda:1,1.5gb;cpu,*", HARDWARE, policy=policy)
    picture = render_svg(result)
    heights = {
        name: sum(float(bar.get("height", 0)) for bar in bars(picture, colour))
        for name, colour in device_colours("cuda:0", ["cuda:1", "cpu"]).items()
    }
    total = sum(heights.values())
    for name, height in heights.items():
        assert height / total == pytest.approx(result.bytes_on(name) / result.size_bytes, abs=0.005)


def test_the_legend_names_every_device_with_its_bytes() -> None:
    shown = texts(render_svg(PLAN))
    held = PLAN.bytes_on("cuda:1")
    assert f"streamed from cuda:1: {human_size(held)} ({100 * held / PLAN.size_bytes:.1f}%)" in shown
    assert any(text.startswith("resident on cuda:0: ") for text in shown)
    assert any(text.startswith("streamed from cpu: ") for text in shown)


def test_a_bar_says_under_the_pointer_what_it_is() -> None:
    tips = [element.text for element in parsed(render_svg(PLAN)).iter(f"{SVG}title")]
    assert any(re.fullmatch(r"blocks\.3: cuda:0 [\d.]+ MiB, cuda:1 [\d.]+ MiB", tip or "") for tip in tips)


def test_stretches_of_siblings_are_named_once() -> None:
    units = [
        unit("embed", (GIB,)),
        *(unit(f"a.{i}", (GIB,)) for i in range(5)),
        *(unit(f"b.{i}", (GIB,)) for i in range(5)),
    ]
    shown = texts(render_svg(plan(BlockTree(units=tuple(units)), "cuda:0,*", machine(64 * GIB))))
    assert [shown.count(name) for name in ("embed", "a", "b")] == [1, 1, 1]


def test_nothing_streamed_is_said_in_words() -> None:
    picture = render_svg(plan(tree_of([(GIB,)] * 2), "cuda:0,*", HARDWARE))
    assert "everything resident on cuda:0, nothing is streamed" in texts(picture)


@given(trees(), st.sampled_from(["stripe", "contiguous"]))
@settings(max_examples=40)
def test_everything_is_on_the_paper(tree: BlockTree, policy: Policy) -> None:
    assume(tree.size_bytes)
    result = plan(tree, "cpu,*", machine(GIB), policy=policy) if movable(tree) else plan(tree, "cuda:0,*", HARDWARE)
    pictures = [render_svg(result), render_timeline_svg(predict(result, machine(GIB), compute_seconds=0.01))]
    for picture in pictures:
        height = float(parsed(picture).get("height", 0))
        for element in parsed(picture).iter(f"{SVG}rect"):
            left, top, right, bottom = extent(element)
            assert 0 <= left <= right <= WIDTH and 0 <= top <= bottom <= height
        for element in parsed(picture).iter(f"{SVG}text"):
            assert 0 <= float(element.get("x", -1)) <= WIDTH and 0 <= float(element.get("y", -1)) <= height - 4


def movable(tree: BlockTree) -> bool:
    return any(part.size_bytes for part in tree.units if part.kind != "rest")


def test_a_model_of_thousands_of_units_stays_a_small_picture() -> None:
    result = plan(tree_of([(1 << 20,) * 2] * 3000), "cuda:0,3gb;cpu,*", machine(64 * GIB))
    picture = render_svg(result)
    assert len(picture) < 150_000
    assert len(bars(picture, COMPUTE_COLOUR)) <= 240
    timeline = render_timeline_svg(predict(result, machine(64 * GIB), compute_seconds=1.0))
    assert len(timeline) < 150_000


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=12))
def test_any_name_is_shown_and_none_breaks_the_picture(name: str) -> None:
    base = plan(tree_of([(GIB,)]), "cuda:0,*", HARDWARE)
    named = replace(base, units=(replace(base.units[0], path=f'{name}<&">.x'),))
    assert any((tip.text or "").startswith(name) for tip in parsed(render_svg(named)).iter(f"{SVG}title"))


def test_pictures_follow_the_readers_colour_scheme() -> None:
    for picture in (render_svg(PLAN), render_timeline_svg(ESTIMATE)):
        assert "@media (prefers-color-scheme:dark)" in picture
        assert parsed(picture).get("role") == "img" and parsed(picture).get("aria-label")


def test_a_device_has_one_colour_in_both_pictures() -> None:
    colours = device_colours("cuda:0", ["cuda:1", "cpu"])
    assert bars(render_svg(PLAN), colours["cpu"]) and boxes(render_timeline_svg(ESTIMATE), colours["cpu"])
    assert device_colours("cuda:0", [f"cuda:{i}" for i in range(1, 9)])["cuda:7"] == DONOR_COLOURS[0]


def test_the_timeline_is_as_busy_as_predicted() -> None:
    picture = render_timeline_svg(ESTIMATE)
    assert ESTIMATE.seconds is not None and ESTIMATE.compute_seconds is not None
    lane = MARGIN + 118, WIDTH - MARGIN
    drawn = [*boxes(picture, COMPUTE_COLOUR), *boxes(picture, lighter(COMPUTE_COLOUR))]
    busy = sum(float(box.get("width", 0)) for box in drawn if box.find(f"{SVG}title") is not None)
    assert busy / (lane[1] - lane[0]) == pytest.approx(ESTIMATE.compute_seconds / ESTIMATE.seconds, abs=0.05)


def test_the_timeline_says_what_binds() -> None:
    shown = " ".join(texts(render_timeline_svg(ESTIMATE)))
    assert "(predicted)" in shown and "bound by" in shown
    assert {"copies from", "cpu", "cuda:1", "computes on", "cuda:0"} <= set(texts(render_timeline_svg(ESTIMATE)))


def test_many_devices_break_the_legend_and_grow_the_paper() -> None:
    donors = tuple(f"cuda:{index}" for index in range(1, 9))
    spec = ";".join(["cuda:0,*", *(f"{donor},1gb" for donor in donors)])
    result = plan(tree_of([(GIB // 4,) * 4] * 12), spec, machine(64 * GIB, donors=donors))
    legend = {text for text in parsed(render_svg(result)).iter(f"{SVG}text") if "from cuda:" in (text.text or "")}
    assert len(legend) == 8
    assert len({text.get("y") for text in legend}) > 1
    assert float(parsed(render_svg(result)).get("height", 0)) > float(parsed(render_svg(PLAN)).get("height", 0))


def test_a_donor_that_sends_nothing_has_no_lane() -> None:
    result = plan(tree_of([(GIB,)] * 4), "cuda:0,2gb;cuda:1,0;cpu,*", HARDWARE)
    assert "cuda:1" not in texts(render_timeline_svg(predict(result, HARDWARE, compute_seconds=1.0)))


def test_forwards_that_take_no_time_have_a_timeline_of_copies() -> None:
    estimate = predict(PLAN, HARDWARE, compute_seconds=0.0)
    assert boxes(render_timeline_svg(estimate), DONOR_COLOURS[0])


def test_without_a_compute_time_there_is_no_timeline() -> None:
    with pytest.raises(InvalidPlanError, match="compute_seconds"):
        render_timeline_svg(predict(PLAN, HARDWARE))


def test_empty_plans_have_pictures_too() -> None:
    empty = PlacementPlan(compute="cuda:0", donors=(), policy="stripe", slots=2, units=())
    assert parsed(render_svg(empty)) is not None
    assert parsed(render_timeline_svg(predict(empty, HARDWARE, compute_seconds=0.0))) is not None


@given(st.floats(1e-9, 1e9))
def test_ticks_are_round_few_and_inside(largest: float) -> None:
    marks = ticks(largest)
    assert 3 <= len(marks) <= 9
    assert marks[0] == 0 and marks[-1] <= largest * (1 + 1e-6)
