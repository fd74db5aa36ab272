"""What `soak.py` runs: one operation, with how often it is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Run = Callable[[random.Random, Path], str]
"""One operation: takes the generator and an empty folder, raises when a value is wrong, and names what happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that a user does.

    Attributes:
        name: for the table.
        weight: how often it is drawn, against the others.
        run: does it.
    """

    name: str
    weight: float
    run: Run
