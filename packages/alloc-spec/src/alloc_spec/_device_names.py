"""Names of devices: which are canonical, and which one was meant by a name that is nearly one."""

import difflib
import re
from typing import Final

from alloc_spec._errors import AllocValueError

MAX_DEVICE_CHARACTERS: Final = 64

_CANONICAL: Final = re.compile(r"[a-z][a-z0-9_]*(?::(?:0|[1-9][0-9]*))?")
_WITHOUT_COLON: Final = re.compile(r"([a-z]+)[_-]?(0|[1-9][0-9]*)")
_INDEXED: Final = ("cuda", "xpu", "npu", "mlu", "hpu")
_SINGLE: Final = ("cpu", "mps")
_ALSO_CALLED: Final = {"gpu": "cuda", "nvidia": "cuda", "geforce": "cuda", "rocm": "cuda", "hip": "cuda", "amd": "cuda"}
_SHORTEST_GUESSED: Final = 3


def check_device(field_name: str, name: str) -> None:
    """Refuse what is not a canonical device name.

    Raises:
        AllocValueError: it is not.
    """
    if not isinstance(name, str) or len(name) > MAX_DEVICE_CHARACTERS or _CANONICAL.fullmatch(name) is None:
        raise AllocValueError(field_name, name, 'a device name is lower-case type[:index], such as "cuda:0" or "cpu"')


def likely_device(name: str) -> str | None:
    """The usual name of what somebody may have meant, or None where the name is usual or gives no clue.

    >>> [likely_device(name) for name in ("cuda0", "gpu:1", "gpu", "cuda", "cud:1", "cpu0", "cuda:0", "card:0")]
    ['cuda:0', 'cuda:1', 'cuda:0', 'cuda:0', 'cuda:1', 'cpu', None, None]
    """
    kind, _, index = name.partition(":")
    if not index and (match := _WITHOUT_COLON.fullmatch(name)):
        kind, index = match.groups()
    kind = _ALSO_CALLED.get(kind, kind)
    if kind not in _INDEXED + _SINGLE and len(kind) >= _SHORTEST_GUESSED:
        kind = next(iter(difflib.get_close_matches(kind, _INDEXED + _SINGLE, n=1, cutoff=0.75)), kind)
    if kind in _SINGLE:
        meant = kind
    elif kind in _INDEXED:
        meant = f"{kind}:{index or 0}"
    else:
        return None
    return None if meant == name else meant
