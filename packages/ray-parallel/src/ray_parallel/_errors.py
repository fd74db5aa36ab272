"""One tree for everything this package raises: the thing, the reason, the remedy, and the data behind the sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_parallel.sequence._auto import Prediction


class ParallelError(Exception):
    """Anything that ray_parallel refuses or cannot finish.

    Its message and data arrive whole in another process, as a pool of processes sends an error.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[ParallelError], args: tuple[Any, ...]) -> ParallelError:
    """An error with these arguments of its message; the constructors of most make the message themselves."""
    error = kind.__new__(kind)
    error.args = args
    return error


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


class UncutAttentionError(PlanError):
    """Attention ran inside a cut region where the plan has no rule for it, or could not be caught there."""


class UnknownModelError(PlanError):
    """No plan is known for the class of a model.

    Attributes:
        model: qualified name of the class.
    """

    def __init__(self, model: str, known: Sequence[str]) -> None:
        self.model = model
        super().__init__(
            f"no plan is known for {model}; known are: {', '.join(known) or 'none'}. "
            "Derive one and check it, or split by CFG or by data, which need no plan"
        )


class RefusedModelError(UnknownModelError):
    """A model is known, and so is the reason why its tokens cannot be cut.

    Attributes:
        model: qualified name of the class.
        reason: what it does with its tokens.
    """

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        self.reason = reason
        PlanError.__init__(
            self, f"{model} is not run in parallel: {reason}. Split by CFG or by data, which need no plan"
        )


class ChangedModelError(PlanError):
    """The blocks of a known model no longer take the arguments that its plan was written for.

    Attributes:
        model: qualified name of the class.
        differences: one sentence for each block list that changed.
    """

    def __init__(self, model: str, differences: Sequence[str]) -> None:
        self.model = model
        self.differences = tuple(differences)
        super().__init__(
            f"{model} changed since its plan was written: {'; '.join(self.differences)}. "
            "Its plan is not used until it was checked against this version"
        )


class PreflightError(ParallelError):
    """The ranks are about to run different things.

    Attributes:
        ranks: those that disagree with the majority.
    """

    def __init__(self, ranks: Sequence[int], size: int, mine: str) -> None:
        self.ranks = tuple(ranks)
        super().__init__(
            f"rank {', '.join(map(str, self.ranks))} of {size} would run another plan, other shapes or other options "
            f"than the rest, so no rank starts; give every rank the same call. This rank was called with: {mine}"
        )


class CanaryError(ParallelError):
    """A plan gave another result than one process does.

    Attributes:
        error: largest difference, relative to the largest value of the single-process result.
        tolerance: what was allowed.
    """

    def __init__(self, error: float, tolerance: float) -> None:
        self.error = error
        self.tolerance = tolerance
        super().__init__(
            f"the parallel result differs from the single-process one by {error:.1e} (allowed: {tolerance:.1e}); "
            "the plan does not fit this model and is not used"
        )


class CommError(ParallelError):
    """A collective did not finish: a rank is gone, raised, stalled past its deadline, or disagrees about sizes."""


class SplitError(ParallelError):
    """A sampling run cannot be split by CFG or by data without changing its result."""


class NotWorthItError(ParallelError):
    """More ranks are predicted to gain too little.

    Attributes:
        prediction: of the best way to use them.
        least_speedup: what was asked for.
    """

    def __init__(self, prediction: Prediction, least_speedup: float) -> None:
        self.prediction = prediction
        self.least_speedup = least_speedup
        super().__init__(
            f"{prediction.ranks} ranks gain too little, {least_speedup:g}x is asked for. {prediction}. "
            "Use fewer ranks, a faster link or a larger picture, or name the split to use it all the same"
        )


class DeriveError(PlanError):
    """No plan could be derived from a model, or none that holds."""
