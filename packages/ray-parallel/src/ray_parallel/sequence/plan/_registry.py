"""Which plan belongs to which model: by class and by what its blocks take. Unknown or changed means refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ray_parallel.sequence.plan._binding import Signature
from ray_parallel.sequence.plan._compiled import without_compiler
from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._fit import blocks_of
from ray_parallel.sequence.plan._kernels import MaskKernel
from ray_parallel.sequence.plan._plan import Plan


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A plan and the model it was checked with.

    Attributes:
        model: module and name of the class, "diffusers.models.transformers.transformer_wan.WanTransformer3DModel".
        plan: how it is cut.
        blocks: block list -> parameters of its blocks' forward, as `signature_of` gives them.
        kernels: functions for the plan's mask objects, by name.
    """

    model: str
    plan: Plan
    blocks: Mapping[str, tuple[str, ...]]
    kernels: Mapping[str, MaskKernel] = field(default_factory=dict)


def name_of(model: nn.Module) -> str:
    """Module and name of the model's class, as an `Entry` has it; a wrapper of torch.compile is looked through."""
    kind = type(without_compiler(model))
    return f"{kind.__module__}.{kind.__qualname__}"


def signature_of(model: nn.Module, plan: Plan) -> dict[str, tuple[str, ...]]:
    """Parameters of the forward of the blocks of every list in `plan`.

    Raises:
        PlanError: a list is missing or empty, or its blocks take different arguments.
    """
    found = {}
    for name in (name for region in plan.regions for name in region.blocks):
        names = {Signature(block).names() for block in blocks_of(model, name)}
        if len(names) > 1:
            raise PlanError(f"the blocks of {name!r} take different arguments: {', '.join(map(str, sorted(names)))}")
        found[name] = names.pop()
    return found


def find(model: nn.Module, entries: Iterable[Entry]) -> Entry:
    """The entry for the model's class whose blocks take what the model's blocks take.

    A class may have several entries, one for each version of it that a plan was written for.

    Raises:
        UnknownModelError: no entry is for this very class; that of a base class does not count.
        ChangedModelError: the blocks take other arguments than in any entry of the class.
    """
    name, known = name_of(model), list(entries)
    ours = [entry for entry in known if entry.model == name]
    if not ours:
        raise UnknownModelError(name, sorted(entry.model for entry in known))
    for entry in ours:
        differences = _differences(model, entry)
        if not differences:
            return entry
    raise ChangedModelError(name, differences)


def _differences(model: nn.Module, entry: Entry) -> list[str]:
    try:
        found = signature_of(model, entry.plan)
    except PlanError as error:
        return [str(error)]
    return [
        f"blocks of {name!r} take ({', '.join(names)}) instead of ({', '.join(entry.blocks.get(name, ()))})"
        for name, names in found.items()
        if names != tuple(entry.blocks.get(name, ()))
    ]
