"""ComfyUI's `transformer_options` for one forward: the attention override and the patches that run between blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray_parallel.sequence.plan._errors import ClosedWorldError
from ray_parallel.sequence.plan._plan import Plan, Spec
from ray_parallel.sequence.running._catch import OVERRIDE, Attend, override

OPTIONS = "transformer_options"
Patch = Callable[[dict[str, Any]], Any]


def prepare(
    options: Mapping[str, Any],
    plan: Plan,
    attend: Attend,
    on_whole: Callable[[Patch, Mapping[str, Spec]], Patch],
) -> tuple[dict[str, Any], Callable[..., Any] | None]:
    """A copy of the options with our override in place of the earlier one, which it calls.

    Args:
        options: as the host gave them; not changed.
        plan: says which patches may run, and which of their values are cut.
        attend: what to do with a caught attention call.
        on_whole: makes a patch that is shown whole tensors.

    Returns:
        the new options, and the earlier override if there was one.

    Raises:
        ClosedWorldError: a patch that the plan does not know would see parts of tensors.
    """
    patches: Mapping[str, list[Patch]] = options.get("patches") or {}
    unknown = [f"patches[{name!r}]" for name, entries in patches.items() if entries and name not in plan.patches]
    if any(region.scope == "list" for region in plan.regions):
        replaced: Mapping[str, Any] = options.get("patches_replace") or {}
        unknown += [f"patches_replace[{name!r}]" for name, entries in replaced.items() if entries]
    if unknown:
        raise ClosedWorldError(OPTIONS, unknown)
    earlier = options.get(OVERRIDE)
    prepared = {**options, OVERRIDE: override(attend, earlier)}
    if patches:
        prepared["patches"] = {
            name: [on_whole(patch, plan.patches[name]) for patch in entries] if plan.patches.get(name) else entries
            for name, entries in patches.items()
        }
    return prepared, earlier
