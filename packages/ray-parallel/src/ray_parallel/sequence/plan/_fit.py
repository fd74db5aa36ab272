"""Does a plan fit a model at all? Asked before the first hook is set."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ray_parallel.sequence.plan._binding import Signature
from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._plan import Opaque, Plan, Region, leaves


def blocks_of(model: nn.Module, name: str) -> list[nn.Module]:
    """The blocks of the module list `name`, in their wrappers of torch.compile; a plain module is a list of one.

    Raises:
        PlanError: the model has no such module, or the list is empty.
    """
    found = submodule(model, name)
    if found is None:
        raise PlanError(f"{type(model).__name__} has no module {name!r}; the plan was written for another model")
    blocks = list(found) if isinstance(found, nn.ModuleList) else [found]
    if not blocks:
        raise PlanError(f"{name!r} of {type(model).__name__} is an empty list; there is nothing to run in parallel")
    return blocks


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, if there is one, in its wrapper of torch.compile."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def check_fit(model: nn.Module, plan: Plan, kernels: Collection[str]) -> None:
    """Check the names in `plan` against `model`.

    Some members of a family lack one of the attention modules; what attends without a rule is refused when it runs.

    Raises:
        PlanError: a block list, all attention modules of a region, an exit or a mask kernel is not there.
    """
    for region in plan.regions:
        blocks = [block for name in region.blocks for block in blocks_of(model, name)]
        if all(submodule(block, path) is None for block in blocks for path in region.attn):
            paths = ", ".join(map(repr, region.attn))
            raise PlanError(f"no block of {', '.join(region.blocks)} has any of the attention modules {paths}")
        for spec in region.args.values():
            for leaf in leaves(spec):
                if isinstance(leaf, Opaque) and leaf.kernel not in kernels:
                    raise PlanError(f"the plan asks for the mask kernel {leaf.kernel!r}; pass it in kernels")
        _check_exit(model, region)
    for control in plan.control:
        if all(control.blocks not in region.blocks for region in plan.regions):
            raise PlanError(
                f"control {control.key!r} is added after blocks of {control.blocks!r}, which are in no region"
            )


def _check_exit(model: nn.Module, region: Region) -> None:
    if isinstance(region.exit, str):
        if region.exit != "last" and region.exit not in region.blocks:
            raise PlanError(f"exit {region.exit!r} is not one of the lists {', '.join(region.blocks)}")
        return
    path, argument = region.exit
    module = submodule(model, path)
    if module is None:
        raise PlanError(f"{type(model).__name__} has no module {path!r}, before which the plan joins the streams")
    if not Signature(module).takes(argument):
        raise PlanError(f"{path!r} of {type(model).__name__} takes no argument {argument!r} to join")
