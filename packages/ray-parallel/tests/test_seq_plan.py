"""Plans are data: they survive JSON, tell what is wrong with them, and equal plans have equal digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_parallel.sequence import (
    Attn,
    Compressed,
    Control,
    Derived,
    Grid,
    Opaque,
    Plan,
    PlanError,
    Ranges,
    Region,
    Rows,
    Seq,
)

names = st.sampled_from(["txt", "img", "ref"])
streams = st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
lengths = st.one_of(
    st.builds(Seq, streams, st.integers(0, 4)), st.builds(Grid, names, st.integers(1, 4), st.just((2, 3)))
)
others = st.one_of(
    st.none(),
    st.builds(Rows, streams, st.integers(0, 4), st.integers(0, 5)),
    st.builds(Compressed, names),
    st.builds(Ranges, streams),
    st.builds(Opaque, names),
)
specs = st.recursive(lengths | others, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
sides = st.just(()) | streams
rules = st.builds(Attn, sides, sides) | st.builds(Attn, sides, sides, st.builds(Attn, sides, sides))

unhurried = settings(deadline=None, max_examples=40)  # other work on the machine is no failure


@st.composite
def regions(draw: st.DrawFn, number: int = 0) -> Region:
    single = draw(st.booleans())
    ways_out: list[str | tuple[str, str]] = ["last", f"list{number}", *([("head", "x")] if single else [])]
    return Region(
        blocks=[f"list{number}", f"more{number}"][: draw(st.integers(1, 2))],
        args={"x": Seq(("txt", "img", "ref")), "y": draw(lengths)}
        | draw(st.dictionaries(st.sampled_from("abc"), specs, max_size=3)),
        whole=draw(st.sets(st.sampled_from("def"))),
        out=draw(lengths) if single else tuple(draw(st.lists(lengths | st.none(), max_size=3))),
        attn=draw(st.dictionaries(st.sampled_from(["", "attn", "a.b"]), rules)),
        exit=draw(st.sampled_from(ways_out)),
        scope=draw(st.sampled_from(["list", "block"])),
    )


plans = st.builds(
    Plan,
    regions=st.tuples(regions(0)) | st.tuples(regions(0), regions(1)),
    control=st.lists(
        st.builds(Control, key=names, blocks=names, stream=names, out=st.none() | st.just(1), after=sides)
    ),
    patches=st.dictionaries(names, st.dictionaries(names, specs, max_size=2), max_size=2),
    inputs=st.dictionaries(names, st.builds(Seq, streams), max_size=2),
)


@unhurried
@given(plan=plans)
def test_json_both_ways(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.digest() == plan.digest()
    assert again.to_json() == plan.to_json()


@unhurried
@given(one=plans, other=plans)
def test_digests_are_equal_when_plans_are(one: Plan, other: Plan) -> None:
    assert (one == other) == (one.digest() == other.digest())


def region(**changes: Any) -> Region:
    entries: dict[str, Any] = {"blocks": "blocks", "args": {"x": Seq("v")}, "out": Seq("v"), "attn": {}}
    return Region(**{**entries, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blocks": ()}, "no blocks"),
        ({"whole": "x"}, "x is both cut and whole"),
        ({"scope": "model"}, "scope 'model' is unknown"),
        ({"out": Rows("v")}, "cannot return"),
        ({"args": {"x": Rows("v")}}, "no stream has a length"),
        ({"args": {"x": "v"}}, "describes no argument"),
        ({"out": (Seq("v"), None), "exit": ("head", "x")}, "joins one tensor"),
        ({"out": Seq("w")}, "w: no argument of blocks runs over such a stream"),
        ({"attn": {"": Attn("v", "v", other=Attn("v", ("v", "u")))}}, "u: no argument"),
    ],
)
def test_a_region_that_cannot_be(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        region(**changes)


@pytest.mark.parametrize("leaf", [Seq, Rows, Grid, Compressed, Ranges])
@pytest.mark.parametrize("wrong", [(), "", (1,)])
def test_a_leaf_needs_names(leaf: Any, wrong: Any) -> None:
    with pytest.raises(PlanError, match="needs the names"):
        leaf(wrong)


@pytest.mark.parametrize("leaf", [Grid, Compressed])
def test_a_leaf_of_one_stream(leaf: Any) -> None:
    with pytest.raises(PlanError, match="one stream"):
        leaf(("txt", "img"))


def test_a_plan_needs_regions_with_lists_of_their_own() -> None:
    with pytest.raises(PlanError, match="at least one region"):
        Plan(regions=[])
    with pytest.raises(PlanError, match="one region only"):
        Plan(regions=[region(), region()])


def test_a_plan_speaks_of_its_own_streams_only() -> None:
    with pytest.raises(PlanError, match="w: no region has such a stream"):
        Plan(regions=[region()], control=[Control(key="k", blocks="blocks", stream="v", after="w")])
    with pytest.raises(PlanError, match="w: no region has such a stream"):
        Plan(regions=[region()], inputs={"residuals": Seq("w")})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"regions": [{}], "control": [], "patches": {}}', "null"])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON document lie."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def planted(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The document with another value in one place."""
    if not path:
        return new
    return type(value)(
        {**value, path[0]: planted(value[path[0]], path[1:], new)}
        if isinstance(value, dict)
        else [planted(part, path[1:], new) if place == path[0] else part for place, part in enumerate(value)]
    )


junk: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([[1]])
)


@unhurried
@given(plan=plans, data=st.data())
def test_a_damaged_plan_is_a_plan_or_refused_as_none(plan: Plan, data: st.DataObject) -> None:
    document = json.loads(plan.to_json())
    place = data.draw(st.sampled_from(places(document)))
    text = json.dumps(planted(document, place, data.draw(junk)))
    try:
        read = Plan.from_json(text)
    except PlanError:
        return
    assert Plan.from_json(read.to_json()) == read


@pytest.mark.parametrize("leaf", ["abc", 3, ["Seq"], {"kind": "Seq"}, {"kind": "Seq", "streams": ["v"], "size": 1}])
def test_a_damaged_leaf_in_json(leaf: Any) -> None:
    data = json.loads(Plan(regions=[region()]).to_json())
    data["regions"][0]["args"]["x"] = leaf
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("dim", [None, "1", 1.0, True, [1]])
def test_a_dimension_that_is_no_number_is_refused(dim: Any) -> None:
    for leaf in (Seq, Rows, Grid):
        with pytest.raises(PlanError, match="needs the number of a dimension"):
            leaf("video", dim=dim)


def test_an_unknown_leaf_in_json() -> None:
    data = json.loads(Plan(regions=[region()]).to_json())
    data["regions"][0]["args"]["x"]["kind"] = "Stripe"
    with pytest.raises(PlanError, match="Stripe"):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("read", [Plan.from_json, Derived.from_json], ids=["plan", "plan file"])
@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a":' * 10**5, '{"format": NaN}', '{"regions": [], "regions": []}', f'{{"x": 1{"0" * 400}}}'],
    ids=["deep list", "deep object", "not a number", "key twice", "huge number"],
)
def test_hostile_text_is_refused_by_the_packages_own_error(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(PlanError, match="this is no"):
        read(text)
