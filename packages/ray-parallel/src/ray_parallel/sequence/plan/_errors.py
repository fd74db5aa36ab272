"""What every plan error is, and the one of arguments that a plan does not know."""

from __future__ import annotations

from collections.abc import Sequence

from ray_parallel._errors import ParallelError


class PlanError(ParallelError, ValueError):
    """A plan is malformed, or does not fit the model or the tensors it met."""


class ClosedWorldError(PlanError):
    """A block was called with something that its plan lists neither as cut nor as whole.

    Attributes:
        block: class name of the block.
        arguments: what the plan does not know.
    """

    def __init__(self, block: str, arguments: Sequence[str]) -> None:
        self.block = block
        self.arguments = tuple(arguments)
        super().__init__(
            f"{block} was given {', '.join(self.arguments)}, which the plan lists neither as cut nor as whole; an "
            "argument that is forgotten makes wrong pictures, so it is refused: add it to args or to whole"
        )
