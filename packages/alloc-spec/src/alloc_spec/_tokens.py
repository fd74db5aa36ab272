"""The tokenizer: words, plain decimal numbers and single symbols, each with its place in the text."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*
    (?: (?P<word> [A-Za-z][A-Za-z0-9_]* )
      | (?P<number> [0-9]+ (?:\.[0-9]+)? | \.[0-9]+ )
      | (?P<symbol> [,;:%*\#-] )
      | (?P<end> \Z )
      | (?P<other> [\s\S] )
    )""",
    re.VERBOSE,
)


# A repair that takes something away; the space keeps its neighbours apart.
NOTHING: Final = " "


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: `word`, `number`, `end`, `other` (a character that the language does not have), or the symbol itself.
        text: as written; words in lower case.
        start: index of its first character.
        end: index after its last character.
    """

    kind: str
    text: str
    start: int
    end: int

    @property
    def shown(self) -> str:
        """The token as a message quotes it."""
        if self.kind == "end":
            return "the end"
        return repr(self.text if len(self.text) <= 24 else self.text[:21] + "...")

    @property
    def span(self) -> tuple[int, int]:
        """Start and end."""
        return self.start, self.end


class ParseFailure(Exception):
    """Why a text could not be read, before anybody looked for a correction.

    Attributes:
        message: what was expected and what was found.
        span: the offending part.
        hint: what to do about it.
        repairs: texts that may stand in place of the span, the likeliest first.
        is_rule: the text is well-formed and contradicts itself.
    """

    def __init__(
        self,
        message: str,
        span: tuple[int, int],
        *,
        hint: str | None = None,
        repairs: Sequence[str] = (),
        is_rule: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.hint = hint
        self.repairs = repairs
        self.is_rule = is_rule


class TokenStream:
    """The tokens of one text with a reading position."""

    __slots__ = ("_position", "_tokens", "current")

    def __init__(self, text: str) -> None:
        self._tokens = tokenize(text)
        self._position = 0
        self.current = self._tokens[0]

    @property
    def at_last(self) -> bool:
        """Whether nothing but the end follows the current token."""
        return self._position + 2 == len(self._tokens)

    @property
    def following(self) -> Token:
        """The token after the current one; the end is followed by itself."""
        return self._tokens[min(self._position + 1, len(self._tokens) - 1)]

    def advance(self) -> Token:
        """Return the current token, which is not the end, and step to the next."""
        token = self.current
        self._position += 1
        self.current = self._tokens[self._position]
        return token

    def accept(self, kind: str) -> bool:
        """Step over a token of that kind, if it is the current one."""
        if self.current.kind != kind:
            return False
        self.advance()
        return True

    def expect(self, kind: str, place: str, *, hint: str, repairs: Sequence[str]) -> Token:
        """Step over a token of that kind, or fail with the place where it was expected."""
        if self.current.kind != kind:
            raise self.unexpected(f"{kind!r} {place}", hint=hint, repairs=repairs)
        return self.advance()

    def expect_end(self, place: str, *, hint: str, repairs: Sequence[str]) -> None:
        """Fail unless all tokens have been read."""
        if self.current.kind != "end":
            raise self.unexpected(f"the end {place}", hint=hint, repairs=repairs)

    def unexpected(self, wanted: str, *, hint: str | None = None, repairs: Sequence[str] = ()) -> ParseFailure:
        """Describe the failure that the current token is not what was wanted."""
        token = self.current
        return ParseFailure(f"expected {wanted}, found {token.shown}", token.span, hint=hint, repairs=repairs)


def tokenize(text: str) -> list[Token]:
    """Cut a text into tokens, the last of which is the end.

    >>> [token.text for token in tokenize("cuda:0, 2.5 GB")]
    ['cuda', ':', '0', ',', '2.5', 'gb', '']
    """
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "end"
        start, end = match.span(kind)
        shape = text[start:end]
        if kind == "symbol":
            kind = shape
        elif kind == "word":
            shape = shape.lower()
        tokens.append(Token(kind, shape, start, end))
        if kind == "end":
            break
    return tokens
