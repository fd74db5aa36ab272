"""What a node's inputs are, as data: name, kind, default and range, and where the choices come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["COMBO", "FLOAT", "INT", "BOOLEAN", "STRING", "LINK"]
Default = str | float | int | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Choices: the devices of this machine, accelerators first.

    Attributes:
        before: choices that stand before them.
    """

    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OfHostNode:
    """Choices: those of one input of a node that the host registers, whatever they are in its version.

    Attributes:
        node: id of the host's node.
        input: name of its input.
    """

    node: str
    input: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Choices: the files of the host's model folders.

    Attributes:
        folders: names of the host's folders, in the order of the choices.
        suffix: only files that end so; empty for all that can be loaded, GGUF files included.
        qualified: whether a choice is written with its folder before it (``"checkpoints/sd15.safetensors"``).
    """

    folders: tuple[str, ...]
    suffix: str = ""
    qualified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Choices that do not depend on anything.

    Attributes:
        options: the choices.
    """

    options: tuple[str, ...]


Choices = Devices | OfHostNode | Files | Fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Widget:
    """One input of a node; the order of a node's widgets is frozen, since saved workflows rely on it.

    Attributes:
        name: id of the input.
        kind: of input; ``"LINK"`` is a socket without a widget.
        tooltip: what a person reads when pointing at it.
        default: its value in a new node; None leaves it to the host (for devices: the machine's first accelerator).
        minimum: smallest number.
        maximum: largest number.
        step: step of the number's arrows.
        choices: what a combo offers.
        io_type: the host's type of a socket (``"MODEL"``).
        optional: False when a workflow must give it.
        multiline: whether a text has several lines.
    """

    name: str
    kind: Kind
    tooltip: str
    default: Default = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: Choices | None = None
    io_type: str = ""
    optional: bool = False
    multiline: bool = False

    @property
    def type_name(self) -> str:
        """Type on the wire.

        >>> Widget(name="model", kind="LINK", tooltip="the model", io_type="MODEL").type_name
        'MODEL'
        """
        return self.io_type if self.kind == "LINK" else self.kind

    def renamed(self, name: str) -> Widget:
        """The same input under another name."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output of a node.

    Attributes:
        io_type: the host's type (``"MODEL"``).
        name: what the slot is called.
        tooltip: what a person reads when pointing at it.
    """

    io_type: str
    name: str
    tooltip: str


def link(name: str, io_type: str, tooltip: str, *, optional: bool = False) -> Widget:
    """A socket."""
    return Widget(name=name, kind="LINK", io_type=io_type, tooltip=tooltip, optional=optional)


def combo(name: str, choices: Choices, tooltip: str, *, default: str | None = None, optional: bool = False) -> Widget:
    """A list to choose from."""
    return Widget(name=name, kind="COMBO", choices=choices, tooltip=tooltip, default=default, optional=optional)
