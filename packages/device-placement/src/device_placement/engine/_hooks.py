"""How a module calls the engine: two hooks on each streamed unit, one pre-hook on the model, nothing else.

Hooks are not compiled: torch.compile breaks its graph at a streamed unit, compiles the unit's forward once, and the
same code serves every unit of its class, since what is exchanged has the same shapes, strides and device each time.

A unit whose module is never called (its parent calls the parts inside it one by one) is found by scouts: hooks on the
parts, which are taken away as soon as the first call shows who is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device_placement._errors import HandleStateError
from device_placement.engine._engine import Engine
from device_placement.engine._never_compiled import never_compiled
from device_placement.engine._streamed_unit import StreamedUnit


class UnitHook(functools.partial[Any]):
    """A hook bound to an engine. A copy of the module, or a pickle of it, gets a `CopiedHook` in its place."""

    def __reduce__(self) -> tuple[Callable[..., CopiedHook], tuple[()]]:
        """What copy and pickle make of it."""
        return CopiedHook, ()


class ReloadHook(functools.partial[Any]):
    """The same for `load_state_dict`; a copy gets a hook that does nothing."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Callable[..., None]]]:
        """What copy and pickle make of it."""
        return functools.partial, (_do_nothing,)


def _do_nothing(module: nn.Module, incompatible: Any) -> None:
    """Nobody has to know that a copy was loaded."""


class CopiedHook:
    """What a copy of a placed model has for hooks: it goes when the copy is used as an ordinary model."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], result: Any = None) -> None:
        """Remove itself, or explain why the module cannot run.

        Raises:
            HandleStateError: weights and inputs are on different devices.
        """
        tensors = [*module.parameters(), *module.buffers(), *(arg for arg in args if isinstance(arg, Tensor))]
        devices = sorted({str(tensor.device) for tensor in tensors})
        if len(devices) > 1:
            raise HandleStateError(
                f"this {type(module).__name__} is a copy of a placed model, and its tensors and inputs are on "
                f"{', '.join(devices)}; place() the copy, or move it to one device with .to()"
            )
        remove_copied_hooks(module)


def remove_copied_hooks(module: nn.Module) -> None:
    """Take the hooks off a module that it got by being copied."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, CopiedHook)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def is_placed(model: nn.Module) -> bool:
    """Whether a module of `model` has the hooks of a placement."""
    return any(isinstance(hook, UnitHook) for module in model.modules() for hook in module._forward_pre_hooks.values())


def install(model: nn.Module, engine: Engine) -> list[RemovableHandle]:
    """Connect a model with its engine; the handles disconnect them."""
    handles = [
        model.register_forward_pre_hook(UnitHook(_enter_model, engine), prepend=True),
        model.register_load_state_dict_post_hook(ReloadHook(_note_reload, engine)),  # type: ignore[no-untyped-call]
    ]
    for unit in engine.units:
        module = caller_of(model, unit.path)
        unit.callers.append(module)
        # Other pre-hooks must see the weights that the forward will see.
        handles.append(module.register_forward_pre_hook(UnitHook(_enter, engine, unit), prepend=True))
        handles.append(module.register_forward_hook(UnitHook(_leave, engine, unit), always_call=True))
        for part in _parts_with_tensors(module, unit):
            site = _Site()
            unit.scouts[part] = (
                part.register_forward_pre_hook(UnitHook(_enter_part, engine, unit, site), prepend=True),
                part.register_forward_hook(UnitHook(_leave_part, engine, unit, site), always_call=True),
            )
            handles.extend(unit.scouts[part])
    return handles


def caller_of(model: nn.Module, path: str) -> nn.Module:
    """The module whose forward reads the tensors of the module at `path`.

    That is the module itself, except for the projection that nn.MultiheadAttention reads and never calls.
    """
    parent = model.get_submodule(path.rpartition(".")[0]) if path else model
    return parent if isinstance(parent, nn.MultiheadAttention) else model.get_submodule(path)


def _parts_with_tensors(module: nn.Module, unit: StreamedUnit) -> Iterator[nn.Module]:
    owners = {id(owner) for owner, _, _ in unit.entries}
    for part in module.modules():
        inside = (id(owner) for inner in part.modules() for owner in (inner._parameters, inner._buffers))
        if part is not module and not owners.isdisjoint(inside):
            yield part


class _Site:
    """A part of a unit that is looked out for: how often it was called when its unit was not."""

    __slots__ = ("entered",)

    def __init__(self) -> None:
        self.entered = 0


@never_compiled
def _enter(engine: Engine, unit: StreamedUnit, module: nn.Module, args: Any) -> None:
    if unit.scouts:
        unit.dismiss(list(unit.scouts))
    engine.enter(unit)


@never_compiled
def _leave(engine: Engine, unit: StreamedUnit, module: nn.Module, args: Any, result: Any) -> Any:
    return engine.leave(unit, result)


@never_compiled
def _enter_model(engine: Engine, module: nn.Module, args: Any) -> None:
    engine.enter_model()


def _note_reload(engine: Engine, module: nn.Module, incompatible: Any) -> None:
    engine.note_reload()


@never_compiled
def _enter_part(engine: Engine, unit: StreamedUnit, site: _Site, module: nn.Module, args: Any) -> None:
    """A part of a unit is called although the unit is not: its parent does without the unit's own forward."""
    if engine.is_inside(unit):
        return
    unit.dismiss([part for part in module.modules() if part is not module])
    if module not in unit.callers:
        unit.callers.append(module)
    engine.enter(unit)
    site.entered += 1


@never_compiled
def _leave_part(engine: Engine, unit: StreamedUnit, site: _Site, module: nn.Module, args: Any, result: Any) -> Any:
    if not site.entered or not engine.is_inside(unit):
        return None
    site.entered -= 1
    return engine.leave(unit, result)
