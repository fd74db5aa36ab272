"""The handshake of versions: what can change a result must be the same everywhere."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

import torch


def versions() -> dict[str, str]:
    """Versions of this process by the name of the software; Ray is not imported for it."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "ray": importlib.metadata.version("ray"),
        "ray-parallel": importlib.metadata.version("ray-parallel"),
    }


def differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What differs: name -> (mine, theirs); software that one side lacks differs too.

    >>> differences({"torch": "2.14.1", "ray": "2.60.0"}, {"torch": "2.11.0", "ray": "2.60.0"})
    {'torch': ('2.14.1', '2.11.0')}
    """
    return {
        name: (mine.get(name, "none"), theirs.get(name, "none"))
        for name in (*mine, *(name for name in theirs if name not in mine))
        if mine.get(name) != theirs.get(name)
    }
