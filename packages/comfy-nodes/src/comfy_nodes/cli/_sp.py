"""`torchspan sp`: plans for models that nobody wrote one for, derived by trial and checked again."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_nodes.cli._exit import CommandError, ExitCode, check_target, exits_with
from comfy_nodes.cli._output import warn

if TYPE_CHECKING:
    from ray_parallel.sequence import Derived, Probe

OPT_IN = (
    "a derived plan held in a trial and was read by nobody: lengths and arguments that were not tried may still come "
    "out wrong, so it is used only where you ask for it"
)


def run_derive(options: argparse.Namespace) -> ExitCode:
    """Derive a plan, try it and write it.

    Raises:
        CommandError: the probe cannot be loaded (2); no plan holds, or the file cannot be written (1).
    """
    _need_ray_parallel()
    from ray_parallel.sequence import ParallelError, derive_plan

    path = Path(options.out)
    check_target(path)
    probe = _load(options.probe)
    with exits_with(ExitCode.REFUSED, ParallelError):
        derived = derive_plan(probe, allow_branches=options.allow_branches)
    with exits_with(ExitCode.REFUSED, OSError):
        path.write_text(derived.to_json(), encoding="utf-8")
    print(_summary(derived))
    print(f"largest difference from one process on {_ranks(derived)} ranks: {derived.difference:.1e}")
    print(f"written to {path}")
    warn(OPT_IN)
    return ExitCode.OK


def run_check(options: argparse.Namespace) -> ExitCode:
    """Try a plan file with today's model.

    Raises:
        CommandError: the file or the probe cannot be loaded (2), or the plan no longer holds (1).
    """
    _need_ray_parallel()
    from ray_parallel.sequence import Derived, ParallelError, PlanError, check_plan

    path = Path(options.plan)
    with exits_with(ExitCode.USAGE, OSError):
        data = path.read_bytes()
    try:
        derived = Derived.from_json(data.decode())
    except UnicodeDecodeError as error:
        reason = "it is no text; name a file that `torchspan sp derive` wrote"
        raise CommandError(f"{path}: {reason}", exit_code=ExitCode.USAGE) from error
    except PlanError as error:
        raise CommandError(f"{path}: {error}", exit_code=ExitCode.USAGE) from error
    probe = _load(options.probe)
    with exits_with(ExitCode.REFUSED, ParallelError):
        difference = check_plan(derived, probe)
    print(_summary(derived))
    print(f"it holds today: largest difference from one process on {_ranks(derived)} ranks: {difference:.1e}")
    warn(OPT_IN)
    return ExitCode.OK


def _need_ray_parallel() -> None:
    if importlib.util.find_spec("ray_parallel") is None:
        raise CommandError('ray-parallel is not installed; pip install "comfy-nodes[ray]" adds it')


def _load(name: str) -> Probe:
    """The function `module:name`; modules of the current folder are found."""
    module_name, colon, function = name.partition(":")
    if not colon or not module_name or not function:
        raise CommandError(f"{name!r} names no probe; write MODULE:FUNCTION", exit_code=ExitCode.USAGE)
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise CommandError(
            f"{module_name} cannot be imported: {error}; run this in the folder of the module, with what it imports "
            "installed",
            exit_code=ExitCode.USAGE,
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    probe: Probe | None = getattr(module, function, None)
    if not callable(probe):
        where = getattr(module, "__file__", None) or "built into Python"
        raise CommandError(
            f"{module_name} ({where}) has no function {function}; name your probe", exit_code=ExitCode.USAGE
        )
    return _checked(probe, name)


def _checked(probe: Probe, name: str) -> Probe:
    """The same probe, whose answers are looked at: what it raises is its own, with its traceback."""

    def checked(step: int) -> Any:
        answer: Any = probe(step)
        if not (isinstance(answer, tuple) and len(answer) == 2 and callable(answer[0]) and isinstance(answer[1], dict)):
            raise CommandError(
                f"{name} gave {type(answer).__name__} for step {step}; return the model and a dict of the arguments of "
                "its forward",
                exit_code=ExitCode.USAGE,
            )
        return answer

    return checked


def _summary(derived: Derived) -> str:
    lines = [derived.entry.model]
    for region in derived.entry.plan.regions:
        lines.append(f"  {', '.join(region.blocks)}")
        lines.append(f"    cut    {', '.join(region.args)}")
        lines.append(f"    whole  {', '.join(region.whole) or 'nothing'}")
        lines.append(f"    joined {'after every block' if region.scope == 'block' else 'after the last block'}")
    lines += [f"  allowed: {place}" for place in derived.branches]
    return "\n".join(lines)


def _ranks(derived: Derived) -> str:
    return " and ".join(map(str, derived.ranks))
