"""Arguments by name: whatever way a block is called, what is not replaced arrives as it was given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_parallel.sequence.plan._binding import Signature


class Starred(nn.Module):
    """Opaque to a reader of its signature."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs


class Mixed(nn.Module):
    """Every kind of parameter."""

    def forward(self, a: Any, /, b: Any = 0, *rest: Any, c: Any = 0, **more: Any) -> Any:
        return a, b, rest, c, more


values = st.none() | st.integers(0, 9)
named = st.dictionaries(st.sampled_from(["c", "d", "e"]), values)


@given(args=st.lists(values, min_size=1, max_size=5).map(tuple), kwargs=named, starred=st.booleans())
def test_a_call_that_is_not_changed_stays_as_it_was(
    args: tuple[Any, ...], kwargs: dict[str, Any], starred: bool
) -> None:
    module = Starred() if starred else Mixed()
    bound = Signature(module).bind(args, kwargs)
    assert bound.call() == (args, kwargs)
    for name, value in bound.given().items():
        bound.replace(name, value)
    again, same = bound.call()
    assert module(*again, **same) == module(*args, **kwargs)
    assert (again, same) == (args, kwargs)


@given(args=st.lists(values, min_size=1, max_size=5).map(tuple), kwargs=named, data=st.data())
def test_one_value_is_replaced_and_no_other(args: tuple[Any, ...], kwargs: dict[str, Any], data: st.DataObject) -> None:
    bound = Signature(Mixed()).bind(args, kwargs)
    before = bound.given()
    single = sorted(name for name in before if not name.startswith("*"))
    if not single:
        return
    name = data.draw(st.sampled_from(single))
    bound.replace(name, "new")
    assert bound.given() == {**before, name: "new"}
    changed, more = bound.call()
    assert len(changed) == len(args)
    assert sum(one is not other for one, other in zip(changed, args, strict=True)) + (more != kwargs) == 1


@given(args=st.lists(values, min_size=1, max_size=5).map(tuple), kwargs=named)
def test_what_is_given_has_a_name_and_is_not_none(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given_values = Signature(Mixed()).bind(args, kwargs).given()
    assert None not in given_values.values()
    assert set(given_values) <= {"a", "b", "*rest", "c", "d", "e"}
    assert given_values.get("*rest", ()) == args[2:]


def test_starred_arguments_are_replaced_where_they_were() -> None:
    bound = Signature(Starred()).bind((1, 2), {"gain": 3})
    assert bound.given() == {"*args": (1, 2), "gain": 3}
    bound.replace("*args", [4, 5])
    assert bound.call() == ((4, 5), {"gain": 3})


class Named(nn.Module):
    def forward(self, x: int, y: int = 0, *, z: int = 0, **more: int) -> tuple[int, int, int, dict[str, int]]:
        return x, y, z, more


def test_arguments_stay_by_position_or_by_name() -> None:
    bound = Signature(Named()).bind((1,), {"y": 2, "w": 3})
    assert bound.given() == {"x": 1, "y": 2, "w": 3}
    for name, value in {"x": 10, "y": 20, "z": 30, "w": 40, "v": 50}.items():
        bound.replace(name, value)
    args, kwargs = bound.call()
    assert (args, kwargs) == ((10,), {"y": 20, "z": 30, "w": 40, "v": 50})
    assert Named()(*args, **kwargs) == (10, 20, 30, {"w": 40, "v": 50})


def test_names_carry_their_stars() -> None:
    signature = Signature(Named())
    assert signature.names() == ("x", "y", "z", "**more")
    assert signature.takes("z")
    assert not signature.takes("more")
    assert Signature(Starred()).names() == ("*args", "**kwargs")


def test_too_many_positional_arguments_raise() -> None:
    with pytest.raises(TypeError, match="takes 2 positional arguments, but 3 were given"):
        Signature(Named()).bind((1, 2, 3), {})


def test_what_is_none_was_not_given() -> None:
    assert Signature(Named()).bind((None, 2), {"z": None}).given() == {"y": 2}
