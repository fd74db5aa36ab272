"""What the pack needs of the host, as data: one entry a symbol, written by a tool and read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from comfy_nodes.contract._signature import Call, Signature

FILE: Final = Path(__file__).with_name("host_contract.json")
EVERY_NODE: Final = "every node"
"""Stands for all nodes: the symbol is used when the pack starts, or by what every node does."""

OTHER_PACKS: Final = "other packs"
"""Stands for the nodes of other packs, which exist only when those are loaded."""

Kind = Literal["symbol", "override", "member", "attribute", "key"]
_KINDS: Final = ("symbol", "override", "member", "attribute", "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One thing of the host.

    Attributes:
        name: dotted, from the host's module on; of an attribute or a key just its name.
        kind: ``symbol``: a name of a module or of a class; ``override``: a method that a class of ours replaces;
            ``member``: an attribute of the host's class that a class of ours reads; ``attribute``: an attribute of an
            object of the host whose class the code does not name; ``key``: a text that the host looks for in a dict.
        needed_by: what runs a node (a loader's name or a node's id), or `EVERY_NODE`, or `OTHER_PACKS`.
        calls: shapes of the calls, of which each must fit; of an optional one, one of them.
        parameters: of the replacement, without ``self``; of overrides only.
        optional: the code asks whether it is there and does without.
        without: what happens where it is missing.
    """

    name: str
    kind: Kind
    needed_by: tuple[str, ...]
    without: str
    calls: tuple[Call, ...] = ()
    parameters: Signature | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """All of it.

    Attributes:
        needs: sorted by kind and name.
        places: files and folders of the host in which attributes and keys are looked for.
    """

    needs: tuple[Need, ...]
    places: tuple[str, ...]

    def to_json(self) -> str:
        """As the file has it: one line a need, so that changes can be read."""
        lines = ",\n".join("  " + json.dumps(_described(need)) for need in self.needs)
        return f'{{"places": {json.dumps(list(self.places))},\n"needs": [\n{lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            document = json.loads(text)
            needs = tuple(_need(each) for each in document["needs"])
            return cls(needs=needs, places=tuple(document["places"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the host contract is invalid ({error!r}); run tools/host_contract.py") from error


def load_contract() -> Contract:
    """The contract of this pack.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is invalid.
    """
    return Contract.from_json(FILE.read_text(encoding="utf-8"))


def _described(need: Need) -> dict[str, Any]:
    described: dict[str, Any] = {"name": need.name, "kind": need.kind}
    if need.calls:
        described["calls"] = [[call.positional, list(call.keywords), call.is_open] for call in need.calls]
    if need.parameters is not None:
        described["parameters"] = {
            name: getattr(need.parameters, name)
            for name in Signature.__dataclass_fields__
            if getattr(need.parameters, name)
        }
    described |= {"needed_by": need.needed_by, "optional": need.optional}
    return {**described, "without": need.without}


def _need(described: Mapping[str, Any]) -> Need:
    if described["kind"] not in _KINDS:
        raise ValueError(f"unknown kind {described['kind']!r}; expected one of {', '.join(_KINDS)}")
    parameters = described.get("parameters")
    return Need(
        name=described["name"],
        kind=described["kind"],
        needed_by=tuple(described["needed_by"]),
        calls=tuple(
            Call(positional=positional, keywords=tuple(keywords), is_open=is_open)
            for positional, keywords, is_open in described.get("calls", ())
        ),
        parameters=None if parameters is None else _signature(parameters),
        optional=described["optional"],
        without=described["without"],
    )


def _signature(parameters: Mapping[str, Any]) -> Signature:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()
    }
    return Signature(**values)
