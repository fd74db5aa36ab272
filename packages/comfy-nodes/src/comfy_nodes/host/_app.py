"""What the pack asks of the running host besides models: its node API, its nodes, its hooks, its progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch

from comfy_nodes.host._errors import PlacementRefusedError


def comfy_api() -> ModuleType:
    """The host's node API of today, with `io` and `ui`."""
    import comfy_api.latest

    return comfy_api.latest  # type: ignore[no-any-return]


def registered_nodes() -> dict[str, Any]:
    """The host's live table of nodes by id: what is put into it can be used in workflows."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS  # type: ignore[no-any-return]


def display_names() -> dict[str, str]:
    """The host's live table of display names by id."""
    import nodes

    return nodes.NODE_DISPLAY_NAME_MAPPINGS  # type: ignore[no-any-return]


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

    What is no JSON object is refused with status 400.
    """
    server = _server()
    if server is None:
        return False
    from aiohttp import web

    async def handle(request: Any) -> Any:
        try:
            posted = await request.json()
        except ValueError:
            posted = None
        if not isinstance(posted, dict):
            return web.json_response({"error": "post a JSON object"}, status=400)
        return web.json_response(respond(posted))

    server.routes.post(path)(handle)
    return True


def progress_bar(total: int) -> Any:
    """The host's progress bar of the node that runs, with ``update(steps)``."""
    import comfy.utils

    return comfy.utils.ProgressBar(total)


@contextmanager
def running_on(device: str, module: ModuleType | None, *, offload: str | None = None) -> Iterator[None]:
    """Run code of another pack on a device, for as long as the context lasts.

    Such code keeps a device in a global of its modules, or asks the host for it through a module of the host that it
    keeps in a global, or asks the host in another way, which answers the current accelerator. The globals are exchanged
    in all modules of that pack and put back, and the accelerator is the current one; the host is left alone.

    Args:
        device: where it is to run.
        module: the module of the code.
        offload: where it is to put what it does not use; None leaves it as it is.

    Raises:
        PlacementRefusedError: the code follows none of these.
    """
    import comfy.model_management as management

    wanted = {"device": torch.device(device)} | ({} if offload is None else {"offload_device": torch.device(offload)})
    answers = {"device": management.get_torch_device, "offload_device": management.unet_offload_device}
    with _current_accelerator(wanted["device"]):
        for name, target in wanted.items():
            if not _same(answers[name](), target) and not _follows(module, name, management):
                raise PlacementRefusedError(
                    module.__name__ if module is not None else "the node",
                    f"it asks the host for its {name.replace('_', ' ')} and would be given {answers[name]()}",
                    f"choose {answers[name]()} instead of {target}",
                )
        before = [
            (keeper, name, value)
            for keeper in _modules_of(module)
            for name, value in list(vars(keeper).items())
            if value is management or (name in wanted and isinstance(value, torch.device))
        ]
        answering = _Answering(management, wanted)
        try:
            for keeper, name, value in before:
                setattr(keeper, name, answering if value is management else wanted[name])
            yield
        finally:
            for keeper, name, value in before:
                setattr(keeper, name, value)


class _Answering(ModuleType):
    """The host's module that knows the devices, with answers of ours to what packs ask."""

    def __init__(self, management: ModuleType, wanted: Mapping[str, torch.device]) -> None:
        super().__init__(management.__name__)
        self.__dict__["_management"] = management
        self.__dict__["get_torch_device"] = lambda: wanted["device"]
        if "offload_device" in wanted:
            self.__dict__["unet_offload_device"] = lambda: wanted["offload_device"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_management"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_management"], name, value)


def _modules_of(module: ModuleType | None) -> list[ModuleType]:
    """The modules of the pack that a module belongs to."""
    if module is None:
        return []
    pack = module.__name__.partition(".")[0]
    return [each for name, each in list(sys.modules.items()) if each is not None and name.partition(".")[0] == pack]


def _follows(module: ModuleType | None, name: str, management: ModuleType) -> bool:
    """Whether a module keeps such a device, or the module of the host that it asks for one."""
    kept = {} if module is None else vars(module)
    return isinstance(kept.get(name), torch.device) or any(value is management for value in kept.values())


def _same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def _current_accelerator(device: torch.device) -> AbstractContextManager[object]:
    """Make an accelerator the current one; the cpu never is."""
    if device.type in ("cpu", "mps") or device.index is None:
        return nullcontext()
    return torch.accelerator.device_index(device.index)


def _server() -> Any:
    """The running server; None in a process that has none, where importing its module would start half of one."""
    loaded = sys.modules.get("server")
    return getattr(getattr(loaded, "PromptServer", None), "instance", None)
