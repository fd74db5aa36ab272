"""The EBNF of the documentation, the EBNF of the docstrings and the parser say the same.

The grammar has no recursion, so each rule is a regular expression: the page is compiled and held against the parser.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alloc_spec
from alloc_spec import AllocRuleError, AllocSyntaxError, _grammar, parse, parse_wire

PAGE = Path(__file__).parents[3] / "docs" / "allocation-grammar.md"
RULE = re.compile(r"^ *([A-Za-z]+) = (.+) ;$", re.MULTILINE)
SYMBOL = re.compile(r'"([^"]*)"|\? (\S+) \?|([A-Za-z]+)|([][(){}|,])')
SPACES = r"[ \t\r\n]*"


def rules_of_the_page() -> dict[str, str]:
    blocks = re.findall(r"```ebnf\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return dict(RULE.findall(blocks[0]))


def rules_of_the_docstrings() -> dict[str, str]:
    functions = (member for _, member in inspect.getmembers(_grammar, inspect.isfunction))
    rules: dict[str, str] = {}
    for member in (_grammar, *functions):
        for name, body in RULE.findall(inspect.getdoc(member) or ""):
            assert name not in rules, f"{name} stands in two docstrings"
            rules[name] = body
    return rules


class EbnfCompiler:
    """Turns the rules of a page into one regular expression, spaces between tokens included."""

    def __init__(self, rules: dict[str, str]) -> None:
        self.rules = rules

    def regex(self, name: str, *, inside_token: bool = False) -> str:
        symbols = iter([*SYMBOL.finditer(self.rules[name]), None])
        expression, closing = self._alternatives(symbols, inside_token or name.isupper())
        assert closing is None
        return expression

    def _alternatives(self, symbols: Iterator[re.Match[str] | None], inside_token: bool) -> tuple[str, str | None]:
        parts = [""]
        for symbol in symbols:
            mark = symbol and symbol[4]
            if symbol is None or mark in ("]", ")", "}"):
                return f"(?:{'|'.join(parts)})", mark
            if mark == "|":
                parts.append("")
            elif mark in ("[", "(", "{"):
                group, closing = self._alternatives(symbols, inside_token)
                assert closing is not None
                assert f"{mark}{closing}" in ("[]", "()", "{}")
                parts[-1] += group + {"[": "?", "(": "", "{": "*"}[mark]
            elif mark is None:
                parts[-1] += self._terminal(symbol, inside_token)
        raise AssertionError("a rule without an end")

    def _terminal(self, symbol: re.Match[str], inside_token: bool) -> str:
        literal, character_class, name, _ = symbol.groups()
        if name is not None and not name.isupper():
            return self.regex(name)
        if name is not None:
            token = self.regex(name, inside_token=True)
        elif literal is not None:
            token = "".join(f"[{char}{char.upper()}]" if char.isalpha() else re.escape(char) for char in literal)
        else:
            token = character_class
        return token if inside_token else f"{SPACES}{token}"


LANGUAGE = re.compile(EbnfCompiler(rules_of_the_page()).regex("text") + SPACES)


def verdict(text: str) -> str:
    try:
        parse(text)
    except AllocRuleError:
        return "contradiction"
    except AllocSyntaxError:
        return "not the language"
    return "parsed"


def test_the_page_and_the_docstrings_have_the_same_rules() -> None:
    assert rules_of_the_page() == rules_of_the_docstrings()


def test_every_rule_in_lower_case_is_a_function_of_the_parser() -> None:
    for name in rules_of_the_page():
        assert name.isupper() or callable(getattr(_grammar, f"read_{name}")), name


def test_every_rule_is_used() -> None:
    rules = rules_of_the_page()
    used = {symbol[3] for body in rules.values() for symbol in SYMBOL.finditer(body)}
    assert used - {None} == set(rules) - {"text"}


@given(st.from_regex(LANGUAGE, fullmatch=True))
def test_what_the_page_allows_is_read_or_contradicts_itself(text: str) -> None:
    assert verdict(text) in ("parsed", "contradiction")


@given(st.text(alphabet="cpu:01,;#25.gb%*-auto fre\n", max_size=30))
def test_what_is_read_is_what_the_page_allows(text: str) -> None:
    found = verdict(text)
    if found != "contradiction":
        assert (LANGUAGE.fullmatch(text) is not None) == (found == "parsed")


PIECES = [
    "cpu",
    "cuda",
    ":",
    "0",
    "07",
    ",",
    ";",
    "#",
    "2.5",
    ".5",
    "gb",
    "KiB",
    "%",
    "*",
    "-",
    "auto",
    "FREE",
    "run",
    ",Run",
    " ",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_order_of_pieces_is_judged_alike(text: str) -> None:
    found = verdict(text)
    if found != "contradiction":
        assert (LANGUAGE.fullmatch(text) is not None) == (found == "parsed")


EXAMPLES = [
    "cuda:0,2.5gb;cpu,*",
    "CUDA : 0 , 2.5 GB ; cpu , 5 gb * ; # cuda:0 ; 4 ; cpu",
    "cuda:0,free - 1 gb;xpu,auto",
    "#cuda:0;4;cuda:1,cpu",
    "cuda:0,.5;cpu,1#",
    "cuda:0,auto;cuda:1,8gb , RUN;cpu,*",
    "xpu,.5,run",
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_character_more_or_less_is_judged_alike(text: str) -> None:
    assert LANGUAGE.fullmatch(text)
    for index in range(len(text) + 1):
        for inserted in ("", ",", ";", "#", "0", "b", ".", "*", "run", "%", ":", "-", " ", "é"):
            for dropped in (0, 1):
                changed = text[:index] + inserted + text[index + dropped :]
                found = verdict(changed)
                if found != "contradiction":
                    assert (LANGUAGE.fullmatch(changed) is not None) == (found == "parsed"), changed


@given(st.from_regex(LANGUAGE, fullmatch=True))
def test_the_wire_form_is_the_part_of_the_language_with_a_hash(text: str) -> None:
    try:
        spec = parse(text)
    except AllocRuleError:
        return
    if "#" in text:
        assert parse_wire(text) == spec
    else:
        with pytest.raises(AllocSyntaxError):
            parse_wire(text)


def test_the_kinds_of_amount_on_the_page_are_those_of_the_package() -> None:
    page = PAGE.read_text(encoding="utf-8")
    samples = re.findall(r"^\| [^|]+ \| `((?:cuda:0|cpu),[^`]+)` \|", page, re.MULTILINE)
    kinds = {type(parse(sample).entries[0].amount) for sample in samples}
    assert kinds == {
        alloc_spec.Bytes,
        alloc_spec.Percent,
        alloc_spec.DeviceFraction,
        alloc_spec.Free,
        alloc_spec.Auto,
        alloc_spec.Rest,
    }
