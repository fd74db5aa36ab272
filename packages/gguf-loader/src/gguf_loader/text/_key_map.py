"""From llama.cpp's tensor names to a checkpoint's own: whole names, one look-up each, nothing by substring.

Replacing parts of names one after the other, as loaders before this one do, maps a name by accident: `attn_q` also hits
`attn_q_norm`, and a decoder's `ffn_norm` gets an encoder's number. Here a name is in the table or it is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf_loader._errors import GgufKeyError, quoted

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class KeyMap:
    """A table of names, in which `{n}` stands for the first number within a name.

    Attributes:
        names: target names by source names.
        derived: source names that hold no parameter, only what the configuration says as well (RoPE factors).
    """

    names: Mapping[str, str]
    derived: frozenset[str] = frozenset()

    def target(self, name: str) -> str | None:
        """The target of a whole name; None where the table has none.

        >>> KeyMap({"blk.{n}.attn_q.weight": "model.layers.{n}.self_attn.q_proj.weight"}).target("blk.7.attn_q.weight")
        'model.layers.7.self_attn.q_proj.weight'
        """
        exact = self.names.get(name)
        if exact is not None:
            return exact
        number = _NUMBER.search(name)
        if number is None:
            return None
        template = self.names.get(f"{name[: number.start()]}{{n}}{name[number.end() :]}")
        return None if template is None else template.replace("{n}", number[0])

    def is_derived(self, name: str) -> bool:
        """Whether a source name is known to hold no parameter."""
        return _NUMBER.sub("{n}", name, count=1) in self.derived

    def rename(self, names: Iterable[str], path: str) -> RenamedKeys:
        """Look up every name.

        Raises:
            GgufKeyError: two names have the same target.
        """
        sources: dict[str, str] = {}
        unmapped = []
        for name in names:
            target = self.target(name)
            if target is not None:
                if target in sources:
                    raise GgufKeyError(
                        f"has the same target as {quoted(sources[target])}: {quoted(target)}",
                        path=path,
                        field=f"tensor {quoted(name)}",
                    )
                sources[target] = name
            elif not self.is_derived(name):
                unmapped.append(name)
        return RenamedKeys(sources, tuple(unmapped))


@dataclass(frozen=True, slots=True)
class RenamedKeys:
    """What a key map made of a file's names.

    Attributes:
        sources: source name by target name, in file order.
        unmapped: source names that the table does not know.
    """

    sources: dict[str, str]
    unmapped: tuple[str, ...]


def with_suffixes(stems: Mapping[str, str], prefix: str = "", target: str = "") -> dict[str, str]:
    """A table of whole names from one of stems: each with `.weight` and `.bias`, and prefixes on both sides."""
    return {
        f"{prefix}{source}.{suffix}": f"{target}{name}.{suffix}"
        for source, name in stems.items()
        for suffix in ("weight", "bias")
    }
