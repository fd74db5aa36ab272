"""Running code of another pack on a device of choice: what it keeps of devices is exchanged, the host is left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch

from comfy_nodes.host._errors import PlacementRefusedError


@contextmanager
def running_on(device: str, module: ModuleType | None, *, offload: str | None = None) -> Iterator[None]:
    """Run code of another pack on a device, for as long as the context lasts.

    Such code keeps a device in a global of its modules, or asks the host for it through a module of the host that it
    keeps in a global, or asks the host in another way, which answers the current accelerator. The globals are exchanged
    in all modules of that pack and put back, and the accelerator is the current one.

    Args:
        device: where it is to run.
        module: the module of the code.
        offload: where it is to put what it does not use; None leaves it unchanged.

    Raises:
        PlacementRefusedError: the code follows none of these.
    """
    import comfy.model_management as management
    import comfy.utils

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
        instead = {
            id(management): _Answering(management, wanted),
            id(comfy.utils.load_torch_file): _reading(comfy.utils.load_torch_file),
        }
        before = [
            (keeper, name, value)
            for keeper in _modules_of(module)
            for name, value in list(vars(keeper).items())
            if id(value) in instead or (name in wanted and isinstance(value, torch.device))
        ]
        try:
            for keeper, name, value in before:
                setattr(keeper, name, instead[id(value)] if id(value) in instead else wanted[name])
            yield
        finally:
            for keeper, name, value in before:
                setattr(keeper, name, value)


class _Answering(ModuleType):
    """The host's module that knows the devices, with answers of ours to what packs ask."""

    def __init__(self, answering: ModuleType, wanted: Mapping[str, torch.device]) -> None:
        super().__init__(answering.__name__)
        self.__dict__["_management"] = answering
        self.__dict__["get_torch_device"] = lambda: wanted["device"]
        if "offload_device" in wanted:
            self.__dict__["unet_offload_device"] = lambda: wanted["offload_device"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_management"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_management"], name, value)


def _reading(load_torch_file: Callable[..., Any]) -> Callable[..., Any]:
    """The host's reader of a file, heeding which of several devices is asked for: it reads to the first of a kind."""

    def read(ckpt: str, safe_load: bool = False, device: Any = None, return_metadata: bool = False) -> Any:
        if device is None or not torch.device(device).index:
            return load_torch_file(ckpt, safe_load=safe_load, device=device, return_metadata=return_metadata)
        weights, metadata = load_torch_file(ckpt, safe_load=safe_load, return_metadata=True)
        weights = {name: each.to(device) if torch.is_tensor(each) else each for name, each in weights.items()}
        return (weights, metadata) if return_metadata else weights

    return read


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
