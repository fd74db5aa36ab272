"""Derived plans: opt-in, tried on virtual ranks, written to a file, and tried again before they are used.

A trial shows that a plan holds for the lengths it was tried with. A model that does something else at other lengths can
pass it; so branches on sizes are looked for and refused, and a derived plan is used only where somebody asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from block_discovery import parse_json
from ray_parallel.sequence.deriving._branches import length_branches
from ray_parallel.sequence.deriving._derive import DeriveError, proposals
from ray_parallel.sequence.deriving._probe import Probe, trace
from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._fit import blocks_of
from ray_parallel.sequence.plan._plan import Plan
from ray_parallel.sequence.plan._registry import Entry, find, name_of, signature_of
from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.ranks._team import run_threads
from ray_parallel.sequence.running._canary import CanaryError, flat
from ray_parallel.sequence.running._parallelize import parallelize

STEPS = (0, 1, 2)
"""What a plan is derived from."""
HELD_OUT = 3
"""What it is tried on besides."""
RANKS = (2, 3)
TOLERANCE = 1e-5
"""Of the largest value: plans that hold are within 1e-6 in fp32, others 1e-3 and more away."""
FORMAT = "torchspan derived plan 1"
NOTE = "derived by trial, not reviewed; use it on request only, and check it again after every update of the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A plan that held when it was tried.

    Attributes:
        entry: class, plan and block parameters, for `find` and `parallelize`.
        difference: largest one from a single process in the trial, relative to the largest value.
        ranks: how many virtual ranks it was tried on.
        branches: places where a size decides what runs, which were allowed.
    """

    entry: Entry
    difference: float
    ranks: tuple[int, ...] = RANKS
    branches: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan file."""
        data = {
            "format": FORMAT,
            "note": NOTE,
            "model": self.entry.model,
            "blocks": {name: list(names) for name, names in self.entry.blocks.items()},
            "plan": json.loads(self.entry.plan.to_json()),
            "tried": {"difference": self.difference, "ranks": list(self.ranks), "torch": torch.__version__},
            "branches": list(self.branches),
        }
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Derived:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is no plan file.
        """
        try:
            data = parse_json(text)
            if data["format"] != FORMAT:
                raise PlanError(f"format {data['format']!r} is not {FORMAT!r}; derive the plan again")
            ranks = tuple(data["tried"]["ranks"])
            if not ranks or not all(isinstance(count, int) and count > 1 for count in ranks):
                raise TypeError(f"tried on {ranks} ranks")
            return cls(
                entry=Entry(
                    model=_text(data["model"]),
                    plan=Plan.from_json(json.dumps(data["plan"])),
                    blocks={name: tuple(map(_text, names)) for name, names in data["blocks"].items()},
                ),
                difference=float(data["tried"]["difference"]),
                ranks=ranks,
                branches=tuple(map(_text, data["branches"])),
            )
        except PlanError:
            raise
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise PlanError(f"this is no plan file ({error!r}); derive one") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def derive_plan(probe: Probe, *, allow_branches: bool = False) -> Derived:
    """Derive a plan from a model that nobody wrote one for, and try it.

    Opt-in: a plan that holds in the trial may still not hold for lengths and kinds of arguments that were not tried.

    Args:
        probe: gives model and arguments for the steps 0 to 3: 0 to 2 to derive from, 3 to try on. Every stream needs
            more tokens than there are ranks, and another number at every step.
        allow_branches: go on although sizes decide what runs, because you know that it does not matter.

    Returns:
        the first plan that held.

    Raises:
        DeriveError: nothing can be cut, no proposal held, a size decides what runs, or the probe gives another result
            each time.
    """
    _refuse_unsteady(probe)
    traces = [trace(*probe(step)) for step in STEPS]
    failures = []
    for plan in proposals(traces):
        model, _ = probe(0)
        branches = _branches(model, plan)
        if branches and not allow_branches:
            raise DeriveError(
                f"{'; '.join(branches)}. A part of the tokens may take another way than all of them; make sure that it "
                "does not matter and allow branches, or write the plan by hand"
            )
        try:
            difference = verify(plan, probe, steps=(*STEPS, HELD_OUT))
        except Exception as error:  # noqa: BLE001 - a wrong guess can make the model's own code fail anywhere
            failures.append(str(error).split("\n", 1)[0])
        else:
            entry = Entry(model=name_of(model), plan=plan, blocks=signature_of(model, plan))
            return Derived(entry=entry, difference=difference, branches=tuple(branches))
    raise DeriveError(f"none of {len(failures)} proposals held; the first one: {failures[0]}")


def check_plan(derived: Derived, probe: Probe) -> float:
    """Try a derived plan with today's model.

    Returns:
        the largest relative difference.

    Raises:
        UnknownModelError: it was derived from another class.
        ChangedModelError: the blocks take other arguments now.
        DeriveError: sizes decide now where they did not, or the probe gives another result each time.
        CanaryError: the plan gives another result than one process.
        PlanError: the plan does not fit what the model does.
    """
    model, _ = probe(0)
    entry = find(model, [derived.entry])
    new = [place for place in _branches(model, entry.plan) if place not in derived.branches]
    if new:
        raise DeriveError(f"since the plan was derived: {'; '.join(new)}; derive it again")
    _refuse_unsteady(probe)
    return verify(entry.plan, probe, steps=(*STEPS, HELD_OUT), ranks=derived.ranks)


def verify(plan: Plan, probe: Probe, *, steps: Sequence[int], ranks: Collection[int] = RANKS) -> float:
    """Run the probe's model alone and on threads as ranks, at every step.

    Returns:
        the largest difference of any rank, relative to the largest value.

    Raises:
        CanaryError: it is larger than 1e-5 or not a number.
        PlanError: the plan does not fit.
    """
    worst = 0.0
    for step in steps:
        want = _result(*probe(step))
        for count in ranks:
            calls = [probe(step) for _ in range(count)]

            def rank(comm: Comm, calls: Sequence[Any] = calls) -> Tensor:
                model, arguments = calls[comm.rank]
                with parallelize(model, plan, comm):
                    return _result(model, arguments)

            for got in run_threads(count, rank):
                difference = ((got - want).abs().max() / want.abs().max()).item() if got.shape == want.shape else 1.0
                if not difference <= TOLERANCE:
                    raise CanaryError(difference, TOLERANCE)
                worst = max(worst, difference)
    return worst


def _result(model: nn.Module, arguments: Any) -> Tensor:
    with torch.no_grad():
        return flat(model(**arguments))


def _refuse_unsteady(probe: Probe) -> None:
    if not torch.equal(_result(*probe(0)), _result(*probe(0))):
        raise DeriveError("the probe gives another result each time; seed its weights and its arguments")


def _branches(model: nn.Module, plan: Plan) -> list[str]:
    blocks = [block for region in plan.regions for name in region.blocks for block in blocks_of(model, name)]
    return length_branches(module for block in blocks for module in block.modules())
