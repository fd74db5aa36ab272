"""Plans proposed from notes about forwards: notes as data, so that every turn of the reasoning is shown by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_parallel.sequence import Attn, Compressed, DeriveError, Plan, Ranges, Rows, Seq
from ray_parallel.sequence.deriving._derive import MOST_PROPOSALS, proposals
from ray_parallel.sequence.deriving._probe import Form, Path, Seen, Trace

TOKENS = (11, 17, 29)
TEXT = (5, 7, 3)


def tensor(*shape: int) -> Form:
    return ("tensor", shape)


def notes(
    arguments: Mapping[Any, Sequence[Form | set[Form] | None]],
    results: Mapping[Path, Sequence[Form]],
    attention: Mapping[str, Sequence[Iterable[tuple[int, int]]]],
    order: Sequence[str] = ("blocks", "blocks"),
) -> list[Trace]:
    """What three forwards of a model with one list of blocks would note; a form a step, None where there was none."""
    traces = []
    for step in range(3):
        seen = Seen(
            arguments={
                (name,) if isinstance(name, str) else name: {form} if isinstance(form, tuple) else set(form)
                for name, forms in arguments.items()
                if (form := forms[step]) is not None
            },
            results={path: {forms[step]} for path, forms in results.items()},
            attention={path: set(calls[step]) for path, calls in attention.items()},
        )
        traces.append(Trace({"blocks": seen}, list(order)))
    return traces


def hidden(lengths: Sequence[int]) -> list[Form]:
    return [tensor(1, length, 8) for length in lengths]


def square(lengths: Sequence[int]) -> list[list[tuple[int, int]]]:
    return [[(length, length)] for length in lengths]


def video(**more: Any) -> list[Trace]:
    """One stream through blocks that attend over it, and other arguments."""
    return notes({"x": hidden(TOKENS), **more}, {(): hidden(TOKENS)}, {"attn": square(TOKENS)})


def first(traces: Sequence[Trace]) -> Any:
    """The region of the likeliest plan."""
    (region,) = proposals(traces)[0].regions
    return region


def test_what_has_the_length_of_the_result_is_a_stream() -> None:
    region = first(video())
    assert region.args == {"x": Seq("x")}
    assert region.out == Seq("x")
    assert region.attn == {"attn": Attn("x", "x")}
    assert (region.blocks, region.exit, region.whole) == (("blocks",), "blocks", ())


def test_the_second_half_of_the_proposals_puts_together_around_each_block() -> None:
    found = proposals(video())
    assert [plan.regions[0].scope for plan in found] == ["list", "block"]
    assert found[1].regions[0].args == found[0].regions[0].args


@pytest.mark.parametrize(
    ("forms", "spec"),
    [
        ([tensor(1, length, 1, 4) for length in TOKENS], Seq("x")),
        ([tensor(1, 2, length, 4) for length in TOKENS], Seq("x", 2)),
        ([tensor(1, length, length) for length in TOKENS], None),
        ([tensor(1, 6)] * 3, None),
        ([("int", 24)] * 3, None),
        ([("other", "str")] * 3, None),
        ([tensor(1, 4), tensor(1, 4, 4), tensor(1, 4)], None),
        ([tensor(1, 4, 8), tensor(1, 9, 8), tensor(1, 2, 8)], None),
        ([("int", length - 1) for length in TOKENS], Ranges("x")),
        ([("frames", (length, 1)) for length in TOKENS], Compressed("x")),
        ([{tensor(1, 2), tensor(1, 3)}] * 3, None),
    ],
)
def test_another_argument_is_cut_as_its_lengths_tell(forms: list[Any], spec: Any) -> None:
    region = first(video(e=forms))
    assert region.args.get("e") == spec
    assert ("e" in region.whole) == (spec is None)


def test_rows_that_divide_the_tokens_describe_groups_of_them() -> None:
    tokens, rows = (12, 20, 28), (3, 5, 7)
    region = first(
        notes(
            {"x": hidden(tokens), "e": [tensor(1, count, 6) for count in rows]},
            {(): hidden(tokens)},
            {"attn": square(tokens)},
        )
    )
    assert region.args["e"] == Rows("x", 1, 3)


def test_several_values_in_a_list_are_cut_one_by_one() -> None:
    inside = {("pe", 0): [tensor(1, length, 4) for length in TOKENS], ("pe", 1): [tensor(1, 9)] * 3}
    region = first(
        notes(
            {"x": hidden(TOKENS), "pe": [("many", 2)] * 3, **inside},
            {(): hidden(TOKENS)},
            {"attn": square(TOKENS)},
        )
    )
    assert region.args["pe"] == (Seq("x"), None)


def test_a_list_without_tokens_stays_whole() -> None:
    region = first(
        notes(
            {"x": hidden(TOKENS), "pe": [("many", 1)] * 3, ("pe", 0): [tensor(4)] * 3},
            {(): hidden(TOKENS)},
            {"attn": square(TOKENS)},
        )
    )
    assert region.whole == ("pe",)


def joint(order: Sequence[str]) -> list[Trace]:
    """Two streams, which the attention puts one behind the other."""
    both = [image + text for image, text in zip(TOKENS, TEXT, strict=True)]
    return notes(
        {name: hidden(TOKENS if name == "img" else TEXT) for name in order} | {"pe": hidden(both)},
        {(): [("many", 2)] * 3, (0,): hidden(TOKENS), (1,): hidden(TEXT)},
        {"attn": square(both), "cross": [[(image, 4)] for image in TOKENS]},
    )


def test_streams_that_are_joined_are_proposed_in_both_orders() -> None:
    found = [plan.regions[0].attn["attn"].q for plan in proposals(joint(["img", "txt"]))]
    assert set(found) == {("img", "txt"), ("txt", "img")}
    region = first(joint(["img", "txt"]))
    assert region.out == (Seq("img"), Seq("txt"))
    assert region.attn["cross"] == Attn("img")


def test_a_module_that_attends_twice_has_a_rule_for_each() -> None:
    both = [[(length, length), (length, 5)] for length in TOKENS]
    rule = first(notes({"x": hidden(TOKENS)}, {(): hidden(TOKENS)}, {"attn": both})).attn["attn"]
    assert {(way.q, way.kv) for way in rule.ways()} == {(("x",), ("x",)), (("x",), ())}


def test_lists_that_run_after_one_another_are_regions_of_their_own() -> None:
    traces = video()
    for trace in traces:
        trace.lists["more"] = trace.lists["blocks"]
        trace.order.extend(["more", "more"])
    assert [region.blocks for region in proposals(traces)[0].regions] == [("blocks",), ("more",)]


def test_lists_that_take_turns_are_one_region() -> None:
    traces = video()
    for trace in traces:
        trace.lists["more"] = trace.lists["blocks"]
        trace.order[:] = ["blocks", "more", "blocks", "more"]
    (region,) = proposals(traces)[0].regions
    assert (region.blocks, region.exit) == (("blocks", "more"), "more")


@pytest.mark.parametrize(
    ("traces", "reason"),
    [
        (notes({"x": hidden(TOKENS)}, {(): hidden(TOKENS)}, {}), "no list of blocks both attends and returns tokens"),
        (notes({"x": hidden([9] * 3)}, {(): hidden([9] * 3)}, {"attn": square([9] * 3)}), "no list of blocks both"),
        (video(mask=[tensor(1, 9), None, tensor(1, 9)]), "mask is given at some steps only"),
        (video(e=[{tensor(1, 2), tensor(1, 3)}, tensor(1, 2), tensor(1, 2)]), "e is not the same for all blocks"),
        (video(e=[("frames", (length, 2)) for length in TOKENS]), "belong to no stream of the blocks"),
        (
            notes({"x": hidden(TEXT)}, {(): hidden(TOKENS)}, {"attn": square(TOKENS)}),
            "blocks: no argument of blocks is a Seq or a Grid, so no stream has a length",
        ),
        (
            notes(
                {"x": hidden(TOKENS)},
                {(): hidden(TOKENS)},
                {"attn": [[(11, 11)], [(17, 17), (17, 5)], [(29, 29)]]},
            ),
            r"attn attends \[1, 2, 1\] times at the steps; it must not vary",
        ),
        (
            notes(
                {"x": hidden(TOKENS)}
                | {"pe": [("many", 1)] * 3, ("pe", 0): [("many", 1)] * 3, ("pe", 0, 0): hidden(TOKENS)},
                {(): hidden(TOKENS)},
                {"attn": square(TOKENS)},
            ),
            "pe holds tokens deeper than a list of tensors",
        ),
        (
            notes(
                {"x": hidden(TOKENS)},
                {(): [("many", 1)] * 3, (0,): [("many", 1)] * 3, (0, 0): hidden(TOKENS)},
                {"attn": square(TOKENS)},
            ),
            "tuples inside of tuples",
        ),
    ],
)
def test_notes_that_no_plan_explains(traces: list[Trace], reason: str) -> None:
    with pytest.raises(DeriveError, match=reason):
        proposals(traces)


def test_the_number_of_proposals_is_bounded() -> None:
    """Each number that counts tokens could count those of any stream."""
    names = ["a", "b", "c", "d"]
    lengths = {name: [10 * place + length for length in TOKENS] for place, name in enumerate(names)}
    everything = [sum(lengths[name][step] for name in names) for step in range(3)]
    counts: dict[Any, list[Form]] = {f"n{place}": [("int", length) for length in TOKENS] for place in range(3)}
    traces = notes(
        {name: hidden(lengths[name]) for name in names} | counts,
        {(): [("many", 4)] * 3, **{(place,): hidden(lengths[name]) for place, name in enumerate(names)}},
        {"attn": square(everything)},
    )
    found = proposals(traces)
    assert len(found) == MOST_PROPOSALS
    assert len({plan.digest() for plan in found}) == MOST_PROPOSALS


@given(
    image=st.lists(st.integers(4, 60), min_size=3, max_size=3, unique=True),
    text=st.lists(st.integers(4, 60), min_size=3, max_size=3, unique=True),
    dim=st.integers(0, 2),
)
def test_every_proposal_cuts_what_changes_and_nothing_else(image: list[int], text: list[int], dim: int) -> None:
    """Lengths that differ from step to step tell the streams apart; a proposal is the same for the same notes."""
    assume(image != text)
    shapes = [[2, 3, 4] for _ in image]
    for shape, length in zip(shapes, image, strict=True):
        shape[dim] = length
    both = [a + b for a, b in zip(image, text, strict=True)]
    traces = notes(
        {"img": hidden(image), "txt": hidden(text), "pe": [tensor(*shape) for shape in shapes], "vec": hidden([1] * 3)},
        {(): [("many", 2)] * 3, (0,): hidden(image), (1,): hidden(text)},
        {"attn": square(both)},
    )
    found = proposals(traces)
    assert found == proposals(traces)
    for plan in found:
        assert Plan.from_json(plan.to_json()) == plan
        (region,) = plan.regions
        assert region.args == {"img": Seq("img"), "txt": Seq("txt"), "pe": Seq("img", dim)}
        assert region.whole == ("vec",)
        assert set(region.attn["attn"].q) == {"img", "txt"}
