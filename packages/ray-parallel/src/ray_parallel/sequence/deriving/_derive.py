"""Plans proposed from what a model does at several lengths. A proposal is a guess: only `verify` makes it a plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ray_parallel.sequence.deriving._probe import Form, Path, Seen, Trace
from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._plan import Attn, Compressed, Leaf, Plan, Ranges, Region, Rows, Seq, Spec, Streams

Series = tuple[int, ...]
"""A length at every step."""

MOST_PROPOSALS = 32


class DeriveError(PlanError):
    """No plan could be derived from a model, or none that holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """One region at all steps, its streams, and one choice of their order.

    Attributes:
        seen: for each step what its lists have in common.
        streams: name -> length at every step.
        order: all streams in the order of their concatenation.
    """

    seen: Sequence[Seen]
    streams: Mapping[str, Series]
    order: Streams

    def named(self, lengths: Series) -> Streams | None:
        """The streams whose concatenation has these lengths."""
        for count in range(1, len(self.order) + 1):
            for names in itertools.combinations(self.order, count):
                if tuple(map(sum, zip(*(self.streams[name] for name in names), strict=True))) == lengths:
                    return names
        return None


def proposals(traces: Sequence[Trace]) -> list[Plan]:
    """Every plan that explains the traces, the most likely first.

    Args:
        traces: of one model at steps of different lengths.

    Raises:
        DeriveError: nothing in the model can be cut, or a value changes in a way that no spec describes.
    """
    ways = MOST_PROPOSALS // 2
    regions = [list(itertools.islice(_regions(names, traces), ways)) for names in _groups(traces[0])]
    regions = [found for found in regions if found]
    if not regions:
        raise DeriveError("no list of blocks both attends and returns tokens whose number follows the input")
    found = []
    for chosen in itertools.islice(itertools.product(*regions), ways):
        found.append(Plan(regions=chosen))
    for plan in list(found):  # models that work on the hidden state between their blocks need it whole there
        found.append(Plan(regions=[replace(region, scope="block", exit="last") for region in plan.regions]))
    return found


def _groups(first: Trace) -> Iterator[list[str]]:
    """Lists that run one after the other are regions of their own; lists that take turns are one."""
    runs = [name for name, _ in itertools.groupby(first.order)]
    group: list[str] = []
    for place, name in enumerate(runs):
        if name not in group:
            group.append(name)
        if not set(group) & set(runs[place + 1 :]):
            yield group
            group = []


def _regions(names: Sequence[str], traces: Sequence[Trace]) -> Iterator[Region]:
    steps = [_merged([trace.lists[name] for name in names]) for trace in traces]
    streams = _streams(steps) if any(step.attention for step in steps) else {}
    if not streams:
        return
    _refuse_guests(steps)
    last = traces[0].order[::-1]
    exit_list = next(name for name in last if name in names)
    seen_plans = set()
    for order in itertools.permutations(streams):
        facts = _Facts(seen=steps, streams=streams, order=order)
        attn = {path: _attention(facts, path) for path in sorted({p for step in steps for p in step.attention})}
        for ranges in itertools.product(streams, repeat=_positions(facts)):
            args, whole = _arguments(facts, iter(ranges))
            try:
                region = Region(
                    blocks=tuple(names), args=args, whole=whole, out=_results(facts), attn=attn, exit=exit_list
                )
            except PlanError as error:
                raise DeriveError(f"{', '.join(names)}: {error}") from error
            key = Plan(regions=[region]).digest()
            if key not in seen_plans:
                seen_plans.add(key)
                yield region


def _merged(lists: Sequence[Seen]) -> Seen:
    merged = Seen()
    for one in lists:
        for path, forms in one.arguments.items():
            merged.arguments.setdefault(path, set()).update(forms)
        for path, forms in one.results.items():
            merged.results.setdefault(path, set()).update(forms)
        for name, calls in one.attention.items():
            merged.attention.setdefault(name, set()).update(calls)
    return merged


def _refuse_guests(steps: Sequence[Seen]) -> None:
    always = set.intersection(*(set(step.arguments) for step in steps))
    guests = sorted({str(path[0]) for step in steps for path in set(step.arguments) - always})
    if guests:
        raise DeriveError(f"{', '.join(guests)} is given at some steps only; give the same arguments at every one")


def _streams(steps: Sequence[Seen]) -> dict[str, Series]:
    """The results whose length changes are streams, named after the argument that has the same length."""
    streams: dict[str, Series] = {}
    for path in steps[0].results:
        for _, lengths in _changing(steps, "results", path):
            if lengths not in streams.values():
                streams[_name_of(steps, lengths) or f"stream{len(streams)}"] = lengths
    return streams


def _name_of(steps: Sequence[Seen], lengths: Series) -> str | None:
    for path in steps[0].arguments:
        if any(found == lengths for _, found in _changing(steps, "arguments", path)):
            return "_".join(str(part).strip("*") for part in path)
    return None


def _one_form(steps: Sequence[Seen], where: str, path: Path) -> list[Form]:
    """The form at every step; what differs from block to block, but not from step to step, has none.

    Raises:
        DeriveError: it is there in some steps only, or changes with both.
    """
    forms = [getattr(step, where).get(path, set()) for step in steps]
    if all(found and found == forms[0] for found in forms) and len(forms[0]) > 1:
        return [("other", "several")] * len(forms)
    if any(len(found) != 1 for found in forms):
        label = ".".join(map(str, path)) or "the result"
        raise DeriveError(f"{label} is not the same for all blocks and steps, so no spec describes it: {forms}")
    return [next(iter(found)) for found in forms]


def _changing(steps: Sequence[Seen], where: str, path: Path) -> list[tuple[int, Series]]:
    """Dimensions of a tensor that change from step to step."""
    forms = _one_form(steps, where, path)
    if any(kind != "tensor" for kind, _ in forms) or len({len(shape) for _, shape in forms}) > 1:
        return []
    columns = enumerate(zip(*(shape for _, shape in forms), strict=True))
    return [(dim, lengths) for dim, lengths in columns if len(set(lengths)) > 1]


def _results(facts: _Facts) -> Spec:
    paths = facts.seen[0].results
    if () in paths and _one_form(facts.seen, "results", ())[0][0] == "tensor":
        return _leaf(facts, "results", ())
    if any(len(path) > 1 for path in paths):
        raise DeriveError("blocks return tuples inside of tuples, which no plan describes")
    kind, count = _one_form(facts.seen, "results", ())[0]
    assert kind == "many"
    return tuple(_leaf(facts, "results", (place,)) if (place,) in paths else None for place in range(count))


def _arguments(facts: _Facts, ranges: Iterator[str]) -> tuple[dict[str, Spec], tuple[str, ...]]:
    args: dict[str, Spec] = {}
    names = list(dict.fromkeys(str(path[0]) for path in facts.seen[0].arguments))
    for name in names:
        inner = [path for path in facts.seen[0].arguments if path[0] == name and len(path) > 1]
        kind, value = facts.seen[0].arguments.get((name,), {("other", None)}).copy().pop()
        if kind == "many":
            parts = tuple(_leaf(facts, "arguments", (name, place), ranges) for place in range(value))
            spec: Spec = parts if any(part is not None for part in parts) else None
            if any(len(path) > 2 and _changing(facts.seen, "arguments", path) for path in inner):
                raise DeriveError(f"{name} holds tokens deeper than a list of tensors, which no spec describes")
        else:
            spec = _leaf(facts, "arguments", (name,), ranges) if not inner else None
        if spec is not None:
            args[name] = spec
    return args, tuple(name for name in names if name not in args)


def _positions(facts: _Facts) -> int:
    """How many numbers count tokens of a stream that only a trial can tell."""
    return sum(_is_position(facts, path) for path in facts.seen[0].arguments if len(path) == 1)


def _is_position(facts: _Facts, path: Path) -> bool:
    forms = _one_form(facts.seen, "arguments", path)
    return forms[0][0] == "int" and len(set(forms)) > 1


def _leaf(facts: _Facts, where: str, path: Path, ranges: Iterator[str] | None = None) -> Leaf | None:
    """The spec of one value; None: whole."""
    if path not in getattr(facts.seen[0], where):
        return None
    forms = _one_form(facts.seen, where, path)
    if forms[0][0] == "frames":
        return Compressed(_described(facts, tuple(frames * tokens for _, (frames, tokens) in forms)))
    if forms[0][0] == "int" and len(set(forms)) > 1:
        return None if ranges is None else Ranges(next(ranges))
    changing = _changing(facts.seen, where, path)
    if len(changing) != 1:
        return None
    dim, lengths = changing[0]
    names = facts.named(lengths)
    if names is not None:
        return Seq(names, dim)
    for name, tokens in facts.streams.items():
        if all(count % rows == 0 for count, rows in zip(tokens, lengths, strict=True)):
            return Rows(name, dim, len(forms[0][1]))
    return None


def _described(facts: _Facts, lengths: Series) -> str:
    names = facts.named(lengths)
    if names is None or len(names) > 1:
        raise DeriveError(f"frames of {lengths} tokens belong to no stream of the blocks")
    return names[0]


def _attention(facts: _Facts, path: str) -> Attn:
    """The rule of a module; its calls are matched with their streams step by step, in order of their lengths."""
    calls = [sorted(step.attention.get(path, ())) for step in facts.seen]
    if len({len(listed) for listed in calls}) > 1:
        raise DeriveError(
            f"{path or 'the block'} attends {[len(x) for x in calls]} times at the steps; it must not vary"
        )
    rule: Attn | None = None
    for listed in zip(*calls, strict=True):
        queries = facts.named(tuple(q for q, _ in listed)) or ()
        keys = facts.named(tuple(k for _, k in listed)) or ()
        rule = Attn(queries, keys, other=rule)
    assert rule is not None
    return rule
