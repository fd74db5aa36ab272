"""The node pack: what the host looks for in a pack, made when it is asked for.

`NODE_CLASS_MAPPINGS` and `NODE_DISPLAY_NAME_MAPPINGS` need the host, and nothing else of weight: no model is read, no
device is touched, neither ray nor another pack is imported. `WEB_DIRECTORY` is the folder with the nodes' documents.

May import: contract, host.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

WEB_DIRECTORY: Final = str(Path(__file__).resolve().parents[1] / "web")

if TYPE_CHECKING:
    NODE_CLASS_MAPPINGS: dict[str, type]
    NODE_DISPLAY_NAME_MAPPINGS: dict[str, str]
else:

    def __getattr__(name: str) -> Any:
        """Make the classes when the host asks for them; the table alone needs no host."""
        if name not in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from comfy_nodes.nodes import _serving

        return _serving.mappings() if name == "NODE_CLASS_MAPPINGS" else _serving.display_names()


__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
