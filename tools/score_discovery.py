"""Score block discovery on every model whose blocks are known.

Run `uv run python tools/score_discovery.py` (`--family diffusers` for one family, `--json` for machines). It builds
each model of tests-integration/data/blocks_*.json on the meta device, finds its units and compares them with the
labelled blocks. ComfyUI's models need a checkout (COMFYUI_PATH or ~/.cache/torchspan/ComfyUI) and the dependency
group `host`.

What is counted, in bytes of the labelled blocks of a model (tied tensors left out: they belong to no block):

- exact: a unit holds the same tensors as the labelled block; or units divide a labelled block that is larger than
  the largest allowed unit.
- finer: units divide a labelled block that is not.
- coarser: a unit holds more than the labelled block.
- resident: tensors in the rest: a labelled module below 0.5 % of the model, or the direct parameters of a divided one.
- missed: tensors that the tree does not hold at all.

- names: the units that names and shapes of the state dict alone give, in bytes of the units at the same path.

A model counts as exact when exact bytes are 95 % of its labelled bytes, and as in reach when exact and finer bytes
are: its labelled blocks are then unions of units. It counts under names when all unit paths are the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import discovery_oracles
from block_discovery import BlockTree, discover, discover_names
from discovery_oracles import FAMILIES, Oracle
from get_comfyui import find_comfyui

MAX_UNIT_FRACTION = 0.125
ENOUGH = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How the units of one model compare with its labelled blocks, in bytes."""

    family: str
    name: str
    labelled: int
    exact: int = 0
    finer: int = 0
    coarser: int = 0
    resident: int = 0
    missed: int = 0
    units: int = 0
    milliseconds: float = 0.0
    same_from_names: bool = False
    same_bytes_from_names: float = 0.0
    reasons: dict[str, float] = field(default_factory=dict)

    @property
    def exact_share(self) -> float:
        """Share of the labelled bytes that the cut finds as labelled."""
        return self.exact / self.labelled if self.labelled else 0.0

    @property
    def reach_share(self) -> float:
        """Share of the labelled bytes in blocks that are unions of units."""
        return (self.exact + self.finer) / self.labelled if self.labelled else 0.0

    @property
    def is_exact(self) -> bool:
        """Whether the cut counts as exact."""
        return self.exact_share >= ENOUGH

    @property
    def is_in_reach(self) -> bool:
        """Whether the cut counts as in reach."""
        return self.reach_share >= ENOUGH


def compare(tree: BlockTree, labels: Iterable[str], state: dict[str, int]) -> tuple[Counter[str], dict[str, float]]:
    """Compare a tree with labelled blocks.

    Args:
        tree: the units of a model.
        labels: paths of the labelled blocks.
        state: bytes of every tensor of the model, tied ones left out, by name.

    Returns:
        Bytes by verdict, with their sum under ``labelled``; and the share of the labelled bytes of each kind of block
        that is not exact, by path with numbers replaced by ``*`` and verdict.
    """
    unit_of = {tensor.name: unit.path for unit in tree.units for tensor in unit.tensors}
    tensors_in = Counter(path for path in unit_of.values() if path)
    names = sorted(state)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for label in labels:
        inside = names[bisect_left(names, f"{label}.") : bisect_left(names, f"{label}/")]
        size = sum(state[name] for name in inside)
        lost = {
            "missed": sum(state[name] for name in inside if name not in unit_of),
            "resident": sum(state[name] for name in inside if unit_of.get(name) == ""),
        }
        here = Counter(unit_of[name] for name in inside if unit_of.get(name))
        if any(tensors_in[path] > count for path, count in here.items()):
            verdict = "coarser"
        elif (len(here) == 1 and not any(lost.values())) or size > MAX_UNIT_FRACTION * tree.size_bytes:
            verdict = "exact"
        else:
            verdict = "finer"
        sizes = {**lost, verdict: size - sum(lost.values())}
        counts.update(sizes)
        counts["labelled"] += size
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", label)
        reasons.update({f"{pattern} {kind}": size for kind, size in sizes.items() if kind != "exact" and size})
    shares = {reason: size / counts["labelled"] for reason, size in reasons.most_common()}
    return counts, shares


def score(oracle: Oracle, repeats: int = 10) -> Score:
    """Build a model, find its units, and compare; the time is the best of `repeats`."""
    model = oracle.build()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        tree = discover(model, max_unit_fraction=MAX_UNIT_FRACTION)
        seconds.append(time.perf_counter() - start)
    labels = oracle.label_paths(model)
    if len(labels) != oracle.label_count:
        raise LookupError(
            f"{oracle.family} {oracle.name}: {oracle.label_count} labelled blocks are known, this model has "
            f"{len(labels)}; the library is another version than the facts"
        )
    tied = {name for group in tree.tied for name in group}
    tensors = {
        name: tensor.numel() * tensor.element_size()
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
        if name not in tied
    }
    counts, reasons = compare(tree, labels, tensors)
    from_names = discover_names({name: (value.shape, value.dtype) for name, value in model.state_dict().items()})
    paths = {unit.path for unit in tree.units}
    paths_from_names = {unit.path for unit in from_names.units}
    same = sum(unit.size_bytes for unit in tree.units if unit.kind != "rest" and unit.path in paths_from_names)
    return Score(
        family=oracle.family,
        name=oracle.name,
        units=len(tree.units),
        milliseconds=1e3 * min(seconds),
        same_from_names=paths == paths_from_names,
        same_bytes_from_names=same / sum(unit.size_bytes for unit in tree.units if unit.kind != "rest"),
        reasons=reasons,
        **{key: counts[key] for key in ("labelled", "exact", "finer", "coarser", "resident", "missed")},
    )


def score_family(family: str, folder: Path = discovery_oracles.DATA, *, repeats: int = 10) -> list[Score]:
    """Score every oracle of a family; `repeats` as in `score`."""
    scores = []
    try:
        for oracle in discovery_oracles.load(family, folder):
            scores.append(score(oracle, repeats))
            gc.collect()
            # What lives on are the library's classes. To look through all of them after each model takes longer than
            # to build and score it.
            gc.freeze()
    finally:
        gc.unfreeze()
    return scores


def render(scores: Sequence[Score]) -> str:
    """The score table, then every model that is not exact with its reasons."""
    lines = [
        f"{'family':<14}{'models':>6}{'exact':>12}{'in reach':>13}{'resident':>10}{'missed':>8}{'names':>13}"
        f"{'median':>10}{'worst':>10}"
    ]
    for family in dict.fromkeys(score.family for score in scores):
        mine = [score for score in scores if score.family == family]
        resident = sum(score.resident for score in mine) / sum(score.labelled for score in mine)
        times = [score.milliseconds for score in mine]
        lines.append(
            f"{family:<14}{len(mine):>6}{_counted(score.is_exact for score in mine):>12}"
            f"{_counted(score.is_in_reach for score in mine):>13}{resident:>10.3%}"
            f"{sum(score.missed for score in mine):>8}{_counted(score.same_from_names for score in mine):>13}"
            f"{statistics.median(times):>7.1f} ms{max(times):>7.1f} ms"
        )
    lines.append("")
    for score in scores:
        if not score.is_exact:
            reasons = "; ".join(f"{reason} {share:.1%}" for reason, share in list(score.reasons.items())[:4])
            lines.append(
                f"{score.family} {score.name}: exact {score.exact_share:.1%}, "
                f"in reach {score.reach_share:.1%}: {reasons}"
            )
    return "\n".join(lines)


def _counted(verdicts: Iterable[bool]) -> str:
    """How many are true, and their share."""
    each = list(verdicts)
    return f"{sum(each)} {sum(each) / len(each):.1%}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 when every family has 95 % exact, 97 % in reach and no byte missed."""
    parser = argparse.ArgumentParser(description="Score block discovery on every model whose blocks are known.")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this family; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object a model instead of the table")
    options = parser.parse_args(arguments)
    families = options.family or list(FAMILIES)
    if options.family is None and find_comfyui() is None:
        print("comfy skipped: no ComfyUI checkout at COMFYUI_PATH or ~/.cache/torchspan/ComfyUI", file=sys.stderr)
        families.remove("comfy")
    scores = [score for family in families for score in score_family(family)]
    print(json.dumps([asdict(score) for score in scores], indent=1) if options.json else render(scores))
    return 0 if all(holds(scores, family) for family in families) else 1


def holds(scores: Sequence[Score], family: str) -> bool:
    """Whether a family reaches the figures that the project promises."""
    mine = [score for score in scores if score.family == family]
    exact, reach = sum(score.is_exact for score in mine), sum(score.is_in_reach for score in mine)
    return exact >= 0.95 * len(mine) and reach >= 0.97 * len(mine) and not any(score.missed for score in mine)


if __name__ == "__main__":
    sys.exit(main())
