"""The error tree of the package: what was wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from types import MappingProxyType


def quoted(text: object, most: int = 72) -> str:
    """Text from a file as a message may quote it: escaped, and cut to less than a line.

    >>> quoted("a.weight"), quoted("n" * 100_000, 8)
    ("'a.weight'", "'nnnnnnnn... (100000 characters)'")
    """
    if not isinstance(text, str | bytes):
        return repr(text)
    shown = repr(text[:most])
    if len(text) <= most and len(shown) <= 2 * most + 3:
        return shown
    # An escaped character takes up to ten.
    return f"{shown[:-1][: 2 * most + 2]}... ({len(text)} characters){shown[-1]}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def listed(names: Collection[str], most: int = 3) -> str:
    """The first few names and how many more there are.

    >>> listed(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    text = ", ".join(quoted(name) for name in islice(names, most))
    return f"{text} and {len(names) - most} more" if len(names) > most else text


class GgufError(Exception):
    """Base of every error that gguf-loader raises on purpose.

    Attributes:
        reason: what is wrong, as half a sentence.
        remedy: what to do about it; may be empty.
        path: the file, where one is involved.
        field: the field of the file or argument that is wrong, such as `tensor 'a.weight' dims`.
        offset_bytes: where in the file the field starts.
    """

    def __init__(
        self,
        reason: str,
        *,
        remedy: str = "",
        path: str | None = None,
        field: str | None = None,
        offset_bytes: int | None = None,
    ) -> None:
        # The reason is the only positional argument: pickling an exception calls the class with `args` and then
        # restores the attributes, which is how an error crosses a process boundary.
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.path = path
        self.field = field
        self.offset_bytes = offset_bytes

    @property
    def detail(self) -> str:
        """Field, offset and reason, without path and remedy: for whoever names the file in another way."""
        if self.field is None:
            return self.reason
        at = "" if self.offset_bytes is None else f" at byte {self.offset_bytes}"
        return f"{_cut(self.field, 160)}{at}: {self.reason}"

    def __str__(self) -> str:
        text = self.detail if self.path is None else f"{self.path}: {self.detail}"
        return f"{text}; {self.remedy}" if self.remedy else text


class GgufFormatError(GgufError):
    """The bytes are not a well-formed GGUF file; names the field and its offset."""


class GgufUnsupportedError(GgufError):
    """The file is well-formed, but of a kind that is refused: big-endian, another version, one part of a split."""


class GgufTypeError(GgufError):
    """A ggml tensor type that is unknown, was removed, cannot be dequantised, or does not fit a shape."""


class GgufMetadataError(GgufError):
    """A metadata key is missing, or holds a value of another type than the caller needs."""


class GgufKeyError(GgufError):
    """Tensor names do not fit the component: unmapped, colliding, or of an unknown architecture."""


class GgufPairingError(GgufError):
    """The vision projector (mmproj) of a text encoder is missing or ambiguous."""


class GgufTokenizerError(GgufError):
    """The file holds no tokenizer of the wanted kind, or an inconsistent one."""


class GgufPackedError(GgufError):
    """An operation that quantised blocks cannot answer; the remedy is mostly `.dequantize()` first."""


class GgufModelError(GgufError):
    """A state dict does not fit the model that it is loaded into.

    Attributes:
        missing: names that the model has and the state dict lacks.
        unexpected: names that the state dict has and the model lacks.
        mismatched: name -> (shape in the state dict, shape in the model).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = MappingProxyType({})


class GgufLoraError(GgufError):
    """A low-rank adapter does not fit the layers that it is meant for, or is not there."""
