"""Torchspan's face: the torchspan command and the ComfyUI node pack.

ComfyUI finds here what it looks for in a pack; it is made when it is asked for, so the command pays nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_nodes.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
else:

    def __getattr__(name: str) -> Any:
        """Import the pack when the host asks for what is in it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("comfy_nodes.nodes"), name)


__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
