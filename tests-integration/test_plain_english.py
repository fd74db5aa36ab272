"""The worst phrases of docs/style.md stay out of what people read: code, messages, pages, tooltips, changelogs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STYLE = ROOT / "docs" / "style.md"
FOLDERS = ("docs", "examples", "locales", "example_workflows", "packages", "tools", ".github")
SUFFIXES = {".py", ".md", ".js", ".json", ".html", ".toml", ".yml", ".yaml"}
LEFT_OUT = re.compile(r"/(tests|native|__pycache__|node_modules)/")

SAY = {
    "is no good": "is invalid: REASON",
    "is none": "unknown X; expected one of ...",
    "in words": "with an error message",
    "anew": "again",
    "what it is": "leave it out, or name it",
    "as they are": "unchanged",
    "as it is": "unchanged",
    "tells": "reports, shows, lists",
    "told": "given, reported",
    "of its own": "separate",
    "does, too": "also does",
    "lent": "stored in",
    "can be had": "X has it",
}
"""Phrase -> what to say."""

_GAP = r"[\s#*]+"  # a phrase may go over the end of a line, in a comment too
PHRASES = re.compile(
    r"(?<![\w.-])(" + "|".join(phrase.replace(" ", _GAP) for phrase in SAY) + r")(?![\w(=:.-]*[\w(=])", re.MULTILINE
)


def pages() -> Iterator[Path]:
    """Every file that people read, but the style page, which names the phrases."""
    yield from sorted(ROOT.glob("*.md"))
    yield ROOT / "pyproject.toml"
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in SUFFIXES and path != STYLE and not LEFT_OUT.search(f"/{name}") and path.is_file():
                yield path


def found(text: str) -> list[tuple[int, str]]:
    """The line and the phrase of each match, the phrase with single spaces."""
    return [(text.count("\n", 0, match.start()) + 1, re.sub(_GAP, " ", match[1])) for match in PHRASES.finditer(text)]


def test_nobody_has_to_decode_a_sentence() -> None:
    offences = []
    for path in pages():
        name = path.relative_to(ROOT).as_posix()
        for line, phrase in found(path.read_text(encoding="utf-8")):
            offences.append(f"{name}:{line}: not {phrase!r}, but {SAY[phrase]!r}")
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("phrase", SAY)
def test_each_phrase_is_found_also_over_the_end_of_a_line(phrase: str) -> None:
    assert found(f"first\nthe file {phrase}, so") == [(2, phrase)]
    broken = phrase.replace(" ", "\n    # ", 1)
    assert found(f"# the file {broken}.") == [(1, phrase)]


@pytest.mark.parametrize("text", ["x is None", "silent", "told_you", "foretold", "tells()", "lent=3", "of its owner"])
def test_code_and_longer_words_are_not_phrases(text: str) -> None:
    assert found(text) == []


def test_the_style_page_names_every_phrase() -> None:
    page = STYLE.read_text(encoding="utf-8")
    assert [phrase for phrase in SAY if phrase not in page] == []


def test_the_pages_of_every_kind_are_read() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in pages()}
    assert {"README.md", "docs/nodes.md", "tools/check_layers.py"} <= names
    assert any(name.startswith("docs/decisions/") for name in names)
    assert any(name.startswith("packages/") and name.endswith("CHANGELOG.md") for name in names)
