"""Values from outside in messages: never longer than a line, whatever they are."""

from __future__ import annotations

import reprlib

MAX_QUOTED = 80
MAX_PART = 240

_QUOTING = reprlib.Repr()
_QUOTING.maxstring = _QUOTING.maxother = _QUOTING.maxlong = MAX_QUOTED
_QUOTING.maxlist = _QUOTING.maxtuple = _QUOTING.maxdict = 6
_QUOTING.maxlevel = 3


def quoted(value: object) -> str:
    """`repr`, shortened in the middle.

    >>> quoted("x"), len(quoted("x" * 10**6)), quoted(10**5000)
    ("'x'", 80, 'a number of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"
    return shortened(_QUOTING.repr(value), MAX_QUOTED)


def shortened(text: str, most: int = MAX_PART) -> str:
    """One line of at most `most` characters: line breaks become blanks, and the middle gives way.

    >>> shortened("header of file.safetensors", 20)
    'header of...etensors'
    """
    if len(text) > most:
        tail = (most - 3) // 2
        text = f"{text[: most - 3 - tail]}...{text[-tail:]}"
    return " ".join(text.splitlines())
