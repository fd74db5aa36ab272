"""The error tree of the package: what was wrong, where, and what to do about it."""

from __future__ import annotations

from block_discovery._quoting import shortened


class BlockDiscoveryError(Exception):
    """Base of every error that block-discovery raises on purpose.

    Attributes:
        reason: what is wrong, as half a sentence.
        remedy: what to do about it; may be empty.
        subject: the thing that is wrong: a file, a tensor, a unit or an argument; may be empty.
        offset_bytes: where in the file the wrong field starts, where a file is involved.
    """

    def __init__(self, reason: str, *, remedy: str = "", subject: str = "", offset_bytes: int | None = None) -> None:
        # The reason is the only positional argument: pickling an exception calls the class with `args` and then
        # restores the attributes, which is how an error crosses a process boundary.
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.subject = subject
        self.offset_bytes = offset_bytes

    def __str__(self) -> str:
        where = shortened(self.subject)
        if where and self.offset_bytes is not None:
            where += f" at byte {self.offset_bytes}"
        text = f"{where}: {shortened(self.reason)}" if where else shortened(self.reason)
        return f"{text}; {self.remedy}" if self.remedy else text


class ModelWithoutParametersError(BlockDiscoveryError, ValueError):
    """Nothing to place: the module has no tensors, or no name starts with the prefix."""


class UninitializedModelError(BlockDiscoveryError, ValueError):
    """A lazy parameter has no shape yet."""


class InvalidTensorError(BlockDiscoveryError, ValueError):
    """A tensor that cannot be: bad size, unknown or broken element type, sparse, a name that is no module path."""


class InvalidFractionError(BlockDiscoveryError, ValueError):
    """`max_unit_fraction` is not in (0, 1]."""


class InvalidTreeError(BlockDiscoveryError, ValueError):
    """A block tree that contradicts itself: a tensor charged twice, a unit inside another, a misplaced rest."""


class InvalidJsonError(BlockDiscoveryError, ValueError):
    """Text that `encode_json` did not write; the subject is the path of the bad value."""


class HeaderError(BlockDiscoveryError, ValueError):
    """A safetensors file or index whose header is not well-formed; the subject names the file and the tensor."""


class NotRegularFileError(BlockDiscoveryError, OSError):
    """A folder, pipe, socket or device where a file is wanted."""


class ChangedFileError(BlockDiscoveryError, ValueError):
    """A file that has changed since its header was read."""


class UnknownUnitError(BlockDiscoveryError, LookupError):
    """A unit of the tree is not a module of the model."""
