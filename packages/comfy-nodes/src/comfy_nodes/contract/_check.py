"""Does a checkout have what the pack needs? Every difference as data: what, why, which nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from comfy_nodes.contract._checkout import Checkout, Unreadable
from comfy_nodes.contract._needs import Contract, Need

_ATTRIBUTE: Final = r"(?:\.|def |class |^[ \t]+|['\"])NAMES\b"
_KEY: Final = r"['\"]NAMES['\"]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One need that a host does not meet.

    Attributes:
        need: what the pack needs.
        reason: what is different there.
        is_present: it is there, in another form.
    """

    need: Need
    reason: str
    is_present: bool = False

    @property
    def disables(self) -> bool:
        """Whether nodes cannot run without it; attributes and keys are uncertain, and only reported."""
        return not self.need.optional and self.need.kind in ("symbol", "override", "member")


def check(contract: Contract, checkout: Checkout) -> tuple[Broken, ...]:
    """Every need that a host does not meet, optional ones included, in the order of the contract.

    What source does not show (a function behind a decorator, a name made at run time) counts as met: a warning about
    something that works is worse than none.
    """
    return tuple(_broken(contract, checkout))


def _broken(contract: Contract, checkout: Checkout) -> Iterator[Broken]:
    spread = {
        kind: checkout.mentions(
            [need.name for need in contract.needs if need.kind == kind], contract.places, pattern=pattern
        )
        for kind, pattern in (("attribute", _ATTRIBUTE), ("key", _KEY))
    }
    for need in contract.needs:
        if need.kind in spread:
            if need.name not in spread[need.kind]:
                yield Broken(need=need, reason=f"nothing in the host has this {need.kind} any more")
            continue
        try:
            if checkout.find(need.name) is None:
                yield Broken(need=need, reason="the host does not have it")
            elif (reason := _misfit(need, checkout)) is not None:
                yield Broken(need=need, reason=reason, is_present=True)
        except Unreadable:
            continue


def _misfit(need: Need, checkout: Checkout) -> str | None:
    """Why a call of the pack does not fit, or a method of the pack cannot stand for the host's."""
    signature = checkout.signature(need.name)
    if signature is None:
        return None
    lack = None if need.parameters is None else need.parameters.lacks(signature)
    if lack is not None:
        return lack
    refusals = [signature.refuses(call) for call in need.calls]
    if need.optional and None in refusals:
        return None
    return next((refusal for refusal in refusals if refusal is not None), None)
