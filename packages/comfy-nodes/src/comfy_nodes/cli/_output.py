"""How the command prints: tables in columns, sizes and times for people, progress in dots."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alloc_spec import human_size

if TYPE_CHECKING:
    from block_discovery import BlockTree
    from device_placement import Finding


def heading(text: str) -> str:
    """A line that starts a part of the output.

    >>> print(heading("Plan"))
    <BLANKLINE>
    == Plan ==
    """
    return f"\n== {text} =="


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out rows under titles, the first `left` columns flush left, the others (numbers) flush right.

    >>> print(table(["device", "free"], [["cuda:0", "22.5 GiB"], ["cpu", "9 GiB"]]))
    device      free
    ------  --------
    cuda:0  22.5 GiB
    cpu        9 GiB
    """
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    lines = []
    for cells in (titles, ["-" * width for width in widths], *rows):
        padded = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def contents(tree: BlockTree) -> str:
    """What a model consists of, in one line."""
    kinds = [unit.kind for unit in tree.units]
    tensors = sum(len(unit.tensors) for unit in tree.units)
    counts = ((kinds.count("block"), "block"), (kinds.count("leaf"), "single layer"), (tensors, "tensor"))
    listed = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count)
    return f"{listed}, {human_size(tree.size_bytes)}"


def print_findings(title: str, findings: Sequence[Finding]) -> None:
    """Print findings under a heading, each with its remedy below."""
    print(heading(title))
    for finding in findings:
        print(f"{finding.level:<8} {finding.subject}: {finding.message}")
        if finding.remedy:
            print(f"         -> {finding.remedy}")


def percent_error(predicted: float, measured: float) -> str:
    """How far a prediction was from the measurement, as signed percent of the measurement.

    >>> percent_error(1.03, 1.0), percent_error(0.5, 1.0)
    ('+3.0 %', '-50.0 %')
    """
    return f"{100 * (predicted / measured - 1):+.1f} %"


def warn(message: str) -> None:
    """Tell the person something that is not an error, without disturbing what is piped onwards."""
    print(f"warning: {message}", file=sys.stderr)


def dots(title: str) -> Callable[[int], None]:
    """Print `title` and return a function that adds a dot each time it is called.

    Plain characters instead of a redrawn bar: they read the same in a terminal, a log and a test.
    """
    print(f"{title} ", end="", flush=True)
    return lambda step: print(".", end="", flush=True)
