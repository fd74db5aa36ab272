"""Values from outside in messages: never longer than a line, whatever they are."""

import reprlib
from typing import Final

MAX_QUOTED: Final = 80

_QUOTING: Final = reprlib.Repr()
_QUOTING.maxstring = _QUOTING.maxother = _QUOTING.maxlong = MAX_QUOTED
_QUOTING.maxlevel = 3


def quoted(value: object) -> str:
    """`repr`, shortened in the middle.

    >>> quoted("cuda"), len(quoted("x" * 10**6)), quoted(10**5000)
    ("'cuda'", 80, 'a number of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"
    return shortened(_QUOTING.repr(value))


def shortened(text: str, most: int = MAX_QUOTED) -> str:
    """At most so many characters: the middle gives way.

    >>> shortened("cuda:0,2gb;cuda:1,2gb;cpu,*", 20)
    'cuda:0,2g...gb;cpu,*'
    """
    if len(text) <= most:
        return text
    tail = (most - 3) // 2
    return f"{text[: most - 3 - tail]}...{text[-tail:]}"
