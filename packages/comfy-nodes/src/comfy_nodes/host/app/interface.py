"""What the pack asks of the running host besides models: its node API, its nodes, its hooks, its progress bar."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def program_folder() -> Path:
    """Where the host's main.py lies."""
    import folder_paths

    return Path(folder_paths.__file__).parent


def has(dotted: str) -> bool:
    """Whether this process has what a dotted name says: a module, or something inside of one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for name in parts[count:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


_log = logging.getLogger(__name__)
_JSON = "application/json"
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a body that was not made by the editor raises where it is read; an unknown charset is a LookupError."""


def comfy_api() -> ModuleType:
    """The host's node API of today, with `io` and `ui`."""
    import comfy_api.latest

    return comfy_api.latest  # type: ignore[no-any-return]


def registered_nodes() -> dict[str, Any]:
    """The host's live table of nodes by id: what is put into it can be used in workflows."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS  # type: ignore[no-any-return]


def loaded_packs() -> dict[str, ModuleType]:
    """The packs that the host has loaded, by name, in the order in which it loaded them."""
    import nodes

    folders: Mapping[str, str] = getattr(nodes, "LOADED_MODULE_DIRS", {})
    # The host files a pack under its path, with the dots replaced, as the name of its module.
    found = ((name, sys.modules.get(folder.replace(".", "_x_"))) for name, folder in folders.items())
    return {name: module for name, module in found if module is not None}


def when_started(callback: Callable[[], None]) -> bool:
    """Call back once, after every pack is loaded and before the first prompt; False where no server runs."""
    server = _server()
    if server is None:
        return False

    async def started(_application: object) -> None:
        callback()

    server.app.on_startup.append(started)
    return True


def on_prompt(rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Have each prompt rewritten before the host checks it; False where no server runs.

    Args:
        rewrite: takes node number -> ``class_type`` and ``inputs``, and returns the same.
    """
    server = _server()
    if server is None:
        return False

    def handler(posted: dict[str, Any]) -> dict[str, Any]:
        prompt = posted.get("prompt")
        return {**posted, "prompt": rewrite(prompt)} if isinstance(prompt, dict) else posted

    server.add_on_prompt_handler(handler)
    return True


def answer(path: str, respond: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Answer a JSON object that is posted to `path` of the server with another; False where no server runs.

    A body that is no JSON object, or that `respond` cannot read, is refused with status 400. The answer is made in a
    thread, so that the server goes on.
    """
    server = _server()
    if server is None:
        return False
    from aiohttp import web

    async def handle(request: Any) -> Any:
        try:
            posted = await request.json()
            if not isinstance(posted, dict):
                raise TypeError(f"a JSON {type(posted).__name__} is no object")
            return web.Response(text=await asyncio.to_thread(_answered, respond, posted), content_type=_JSON)
        except _UNREADABLE as error:
            _log.info("%s: a body was refused (%s)", path, type(error).__name__)
            return web.json_response({"error": "post a JSON object"}, status=400)

    server.routes.post(path)(handle)
    return True


def _answered(respond: Callable[[dict[str, Any]], dict[str, Any]], posted: dict[str, Any]) -> str:
    return json.dumps(respond(posted))


def progress_bar(total: int) -> Any:
    """The host's progress bar of the node that runs, with ``update(steps)``."""
    import comfy.utils

    return comfy.utils.ProgressBar(total)


def _server() -> Any:
    """The running server; None in a process that has none, where importing its module would start half of one."""
    loaded = sys.modules.get("server")
    return getattr(getattr(loaded, "PromptServer", None), "instance", None)
