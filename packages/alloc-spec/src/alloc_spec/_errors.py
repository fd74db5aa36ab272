"""The error tree: every complaint names the thing, the reason and the remedy, and carries its data.

    AllocSpecError
    ├── AllocSyntaxError          the text cannot be read; shown with a caret
    │   └── AllocRuleError        the text can be read but contradicts itself
    ├── AllocValueError           a value handed over by code cannot exist
    └── AllocResolveError         the specification does not go with this model and these devices
        ├── UnknownDeviceError
        ├── ComputeDeviceError
        └── NoSpaceError          names an allocation that fits, if there is one
            ├── ExceedsModelError
            ├── NoRoomError
            └── NoHomeError

`AllocResolveError` and those below it stand in `_resolve_errors`. All of them can be pickled, so that they cross
process borders unchanged.
"""

import unicodedata

from alloc_spec._quoting import quoted

_EXCERPT_CHARACTERS = 100


class AllocSpecError(ValueError):
    """Root of all errors of this package."""


class AllocSyntaxError(AllocSpecError):
    """A text that is not an allocation.

    Attributes:
        message: what was expected and what was found.
        source: the text as it was given.
        span: first character and end of the offending part, `0 <= start <= end <= len(source)`.
        hint: what to do about it, or None.
        suggestion: the source corrected so that it can be read, or None where no small edit helps.

    >>> print(AllocSyntaxError("expected ',', found '='", "cuda:0=4gb", (6, 7), "write ','"))
    expected ',', found '='
        cuda:0=4gb
              ^
    write ','
    """

    def __init__(
        self, message: str, source: str, span: tuple[int, int], hint: str | None = None, suggestion: str | None = None
    ) -> None:
        super().__init__(message, source, span, hint, suggestion)
        self.message = message
        self.source = source
        self.span = span
        self.hint = hint
        self.suggestion = suggestion

    def __str__(self) -> str:
        lines = [self.message, *_excerpt(self.source, self.span)]
        if self.hint is not None:
            lines.append(self.hint)
        return "\n".join(lines)


class AllocRuleError(AllocSyntaxError):
    """A text that can be read and contradicts itself: a device named twice, two wildcards, a fraction above 1."""


class AllocValueError(AllocSpecError):
    """A value handed over by code that cannot exist.

    Attributes:
        field: what the value was meant for.
        value: the value.
        reason: what is wrong with it and what would be right.
    """

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, value, reason)
        self.field = field
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field} = {quoted(self.value)}: {self.reason}"


def _excerpt(source: str, span: tuple[int, int]) -> tuple[str, str]:
    start, end = span
    left = max(0, min(start - _EXCERPT_CHARACTERS // 2, len(source) - _EXCERPT_CHARACTERS))
    right = min(len(source), left + _EXCERPT_CHARACTERS)
    before = "..." if left else ""
    after = "..." if right < len(source) else ""
    shown = "".join(character if character.isprintable() else " " for character in source[left:right])
    indent = len(before) + _columns(shown[: start - left])
    carets = max(1, _columns(shown[start - left : end - left]))
    return f"    {before}{shown}{after}", f"    {' ' * indent}{'^' * carets}"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
