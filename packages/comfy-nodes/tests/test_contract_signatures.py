"""Laws of signatures read from source: they refuse a call exactly where Python would."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_nodes.contract import Call, Signature

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def parameter_lists(draw: st.DrawFn) -> str:
    """The parameters of a function, as source."""
    names = list(draw(st.permutations(NAMES)))
    by_position = draw(st.integers(0, 4))
    defaults = draw(st.integers(0, by_position))
    parts = [f"{name}=0" if index >= by_position - defaults else name for index, name in enumerate(names[:by_position])]
    only = draw(st.integers(0, by_position))
    if only:
        parts.insert(only, "/")
    named = names[by_position : by_position + draw(st.integers(0, 5 - by_position))]
    takes_more = draw(st.booleans())
    if takes_more or named:
        parts.append("*more" if takes_more else "*")
    parts += [f"{name}=0" if draw(st.booleans()) else name for name in named]
    if draw(st.booleans()):
        parts.append("**any")
    return ", ".join(parts)


def signature_of(parameters: str) -> Signature:
    (definition,) = ast.parse(f"def f({parameters}): ...").body
    assert isinstance(definition, ast.FunctionDef)
    return Signature.of(definition.args)


def python_takes(parameters: str, positional: int, keywords: tuple[str, ...]) -> bool:
    namespace: dict[str, Any] = {}
    exec(f"def f({parameters}): ...", namespace)
    try:
        namespace["f"](*[0] * positional, **dict.fromkeys(keywords, 0))
    except TypeError:
        return False
    return True


calls = st.tuples(st.integers(0, 6), st.lists(st.sampled_from((*NAMES, "z")), unique=True).map(sorted).map(tuple))


@given(parameters=parameter_lists(), call=calls)
def test_a_call_is_refused_exactly_where_python_refuses_it(parameters: str, call: tuple[int, tuple[str, ...]]) -> None:
    positional, keywords = call
    refusal = signature_of(parameters).refuses(Call(positional=positional, keywords=keywords))
    assert (refusal is None) == python_takes(parameters, positional, keywords), refusal


@given(parameters=parameter_lists(), call=calls)
def test_an_open_call_is_refused_only_for_what_is_written(parameters: str, call: tuple[int, tuple[str, ...]]) -> None:
    positional, keywords = call
    closed = signature_of(parameters).refuses(Call(positional=positional, keywords=keywords))
    opened = signature_of(parameters).refuses(Call(positional=positional, keywords=keywords, is_open=True))
    assert opened is None or opened == closed
    if closed is not None and "requires" in closed:
        assert opened is None


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ("a, b=1", "a, b=1", None),
        ("*args, **kwargs", "a, b, *, c", None),
        ("a, **kwargs", "a, b=1, *, c=2", None),
        ("a, b=1", "a, b=1, c=2", "'c'"),
        ("a, c=1", "a, b=1, c=2", "'b'"),
        ("b, a", "a, b", "'a'"),
        ("a", "a, *, c=1", "'c'"),
        ("a, *, c=1", "a, *, c=1", None),
    ],
)
def test_a_replacement_takes_what_the_hosts_own_takes(ours: str, theirs: str, reason: str | None) -> None:
    lack = signature_of(ours).lacks(signature_of(theirs))
    assert lack is None if reason is None else reason in str(lack)
