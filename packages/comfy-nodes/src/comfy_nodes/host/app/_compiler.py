"""Keeping the host's compiler of allocations away from placed models.

Newer hosts record the allocations of one device round some models' forwards and replay them. A placed model allocates
on donors and on copy streams in between, which such a recording does not know. So a placed model is sampled without it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import comfy.cli_args
from comfy.patcher_extension import WrappersMP

KEY = "torchspan"
SWITCH = "disable_comfy_compiler"
"""The host's start flag, which it reads at each forward, and the model option of hosts that ask the model."""

_log = logging.getLogger(__name__)
_ABSENT = object()


def has_compiler() -> bool:
    """Whether this host has such a compiler."""
    prefetch = sys.modules.get("comfy.model_prefetch")
    return hasattr(comfy.cli_args.args, SWITCH) or hasattr(prefetch, "malloc_graph_begin")


def sample_without_compiler(patcher: Any) -> None:
    """Make a patcher, and every clone of it, sample without the compiler; nothing changes on a host without one."""
    if has_compiler() and not patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _outer_sample)


@contextmanager
def compiler_off(model_options: dict[str, Any]) -> Iterator[None]:
    """Switch the compiler off: for one model where the host asks the model, else for the process, as long as it lasts.

    Args:
        model_options: of the model that runs, with the host's ``transformer_options``.
    """
    _say_once()
    flags, options = vars(comfy.cli_args.args), model_options.setdefault("transformer_options", {})
    switches = (options, flags) if SWITCH in flags else (options,)
    before = [switch.get(SWITCH, _ABSENT) for switch in switches]
    try:
        for switch in switches:
            switch[SWITCH] = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            if value is _ABSENT:
                switch.pop(SWITCH, None)
            else:
                switch[SWITCH] = value


def _outer_sample(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with compiler_off(executor.class_obj.model_options):  # type: ignore[attr-defined]
        return executor(*args, **kwargs)


@cache
def _say_once() -> None:
    _log.info("placed models are sampled without the host's compiler, which knows the memory of one device alone")
