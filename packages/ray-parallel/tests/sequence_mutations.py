"""Plans with one mistake in them, and whether somebody notices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from sequence_ranks import on_threads, threads
from sequence_tiny import Built, Case

from ray_parallel.sequence import ClosedWorldError, Entry, PlanError, Region
from ray_parallel.sequence.plans import plan_for

CANARY_TOLERANCE = 1e-4
"""What the canary allows by default; a plan that is right stays below 1e-6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One argument that a plan treats wrongly.

    Attributes:
        where: the first block list of the region, and the argument.
        argument: its name.
        entry: the entry with the mistake in its plan; None where such a region cannot even be made.
    """

    where: str
    argument: str
    entry: Entry | None


def forgotten(entry: Entry) -> Iterator[Mistake]:
    """Each argument of the plan, left out of it."""
    for place, region in enumerate(entry.plan.regions):
        for argument in (*region.args, *region.whole):
            yield _mistake(entry, place, argument, [name for name in region.whole if name != argument])


def taken_whole(entry: Entry) -> Iterator[Mistake]:
    """Each argument that is cut, called whole."""
    for place, region in enumerate(entry.plan.regions):
        for argument in region.args:
            yield _mistake(entry, place, argument, [*region.whole, argument])


def _mistake(entry: Entry, place: int, argument: str, whole: list[str]) -> Mistake:
    regions: list[Region] = list(entry.plan.regions)
    where = f"{regions[place].blocks[0]}: {argument}"
    args = {name: spec for name, spec in regions[place].args.items() if name != argument}
    try:
        regions[place] = replace(regions[place], args=args, whole=whole)
    except PlanError:
        return Mistake(where=where, argument=argument, entry=None)
    return Mistake(where=where, argument=argument, entry=replace(entry, plan=replace(entry.plan, regions=regions)))


def refusals(cases: Iterable[Case]) -> dict[str, bool]:
    """For every argument of every plan: whether a call that brings it is refused by its name when it is forgotten."""
    return _over(cases, forgotten, _refused_by_name)


def notices(cases: Iterable[Case]) -> dict[str, bool]:
    """For every cut argument of every plan: whether a call fails, or comes out wrong enough for the canary."""
    return _over(cases, taken_whole, _noticed)


def _over(
    cases: Iterable[Case], kind: Callable[[Entry], Iterator[Mistake]], caught: Callable[[Mistake, Built], bool]
) -> dict[str, bool]:
    """Plant each mistake in the calls of all models that share a plan, until one of them tells; named by the first."""
    verdicts: dict[str, bool] = {}
    names: dict[str, str] = {}
    for case in cases:
        built = case.build()
        entry = plan_for(built[0])
        name = names.setdefault(entry.plan.digest(), case.architecture)
        for mistake in kind(entry):
            key = f"{name}, {mistake.where}"
            if not verdicts.get(key, False):
                verdicts[key] = mistake.entry is None or caught(mistake, built)
    return verdicts


def _refused_by_name(mistake: Mistake, built: Built) -> bool:
    assert mistake.entry is not None
    try:
        threads(built, mistake.entry, 2)
    except ClosedWorldError as error:
        return mistake.argument in error.arguments
    except PlanError as error:
        return mistake.argument in str(error)
    return False


def _noticed(mistake: Mistake, built: Built) -> bool:
    assert mistake.entry is not None
    try:
        return on_threads(built, mistake.entry, 3).difference > CANARY_TOLERANCE
    except (PlanError, RuntimeError, ValueError, IndexError, AttributeError):
        return True
