"""One MODEL of the host that several devices compute together, behind every stock node.

May import: _errors, app.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from comfy_nodes.host.parallel._request import ParallelRefusedError, ParallelRequest

if TYPE_CHECKING:
    from comfy_nodes.host.parallel._model import parallel_model
else:

    def __getattr__(name: str) -> object:
        """Import what needs the host when it is first asked for."""
        if name != "parallel_model":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}._model").parallel_model


__all__ = ["ParallelRefusedError", "ParallelRequest", "parallel_model"]
