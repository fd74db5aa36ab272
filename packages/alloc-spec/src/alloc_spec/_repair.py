"""Finds the small edits that turn a text which cannot be read into one that can."""

from collections.abc import Callable
from typing import Final

from alloc_spec._tokens import ParseFailure, tokenize

_LONGEST_TEXT: Final = 200
_MOST_EDITS: Final = 6


def repair(text: str, failure: ParseFailure, reader: Callable[[str], object]) -> str | None:
    """Correct a text by trying the repairs that the failures on the way propose.

    Each edit must leave less unread text behind the next failure than there was before, so that the search ends.

    Args:
        text: what could not be read.
        failure: why.
        reader: reads a text or raises ParseFailure.

    Returns:
        A text that `reader` reads, without needless spaces, or None.
    """
    if len(text) > _LONGEST_TEXT:
        return None
    for _ in range(_MOST_EDITS):
        unread = len(text) - failure.span[0]
        following: tuple[str, ParseFailure] | None = None
        start, end = failure.span
        for replacement in failure.repairs:
            candidate = text[:start] + replacement + text[end:]
            try:
                reader(candidate)
            except ParseFailure as next_failure:
                still_unread = len(candidate) - next_failure.span[0]
                if still_unread < unread:
                    unread, following = still_unread, (candidate, next_failure)
            else:
                return "".join(candidate[token.start : token.end] for token in tokenize(candidate))
        if following is None:
            return None
        text, failure = following
    return None
