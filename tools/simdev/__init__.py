"""Strict simulated accelerators: several devices, streams and links in one process that has none.

See README.md for what they check and how a test uses them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simdev._build import build as build
    from simdev._errors import BuildError as BuildError
    from simdev._errors import CompilerNotFoundError as CompilerNotFoundError
    from simdev._errors import InstallError as InstallError
    from simdev._errors import SimdevError as SimdevError
    from simdev._face import Counters as Counters
    from simdev._face import Link as Link
    from simdev._face import Memory as Memory
    from simdev._face import config as config
    from simdev._face import corrupt_link as corrupt_link
    from simdev._face import count_ops as count_ops
    from simdev._face import counters as counters
    from simdev._face import install as install
    from simdev._face import links as links
    from simdev._face import mem as mem
    from simdev._face import ops as ops
    from simdev._face import pinned_bytes as pinned_bytes
    from simdev._face import reset as reset
    from simdev._face import set_capacity as set_capacity
    from simdev._face import set_pinned_capacity as set_pinned_capacity
    from simdev._face import set_visible as set_visible
    from simdev._face import take_violations as take_violations
    from simdev._face import violations as violations
    from simdev._host_race import HostRaceMode as HostRaceMode

_HOMES = {
    "_build": ("build",),
    "_errors": ("BuildError", "CompilerNotFoundError", "InstallError", "SimdevError"),
    "_face": (
        *("Counters", "Link", "Memory", "config", "corrupt_link", "count_ops", "counters", "install", "links", "mem"),
        *("ops", "pinned_bytes", "reset", "set_capacity", "set_pinned_capacity", "set_visible"),
        *("take_violations", "violations"),
    ),
    "_host_race": ("HostRaceMode",),
}

__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    # The pytest plugin is loaded in every test run of the repository, also where torch is not installed: only the
    # names that need torch may import it.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"simdev.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
