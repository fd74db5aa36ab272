"""Arguments by name, however a module was called."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


class Signature:
    """The parameters of a module's forward.

    Args:
        module: its forward is looked at once, here.
    """

    def __init__(self, module: nn.Module) -> None:
        self._signature = inspect.signature(module.forward)
        self._rest = next((p.name for p in self._signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
        self._more = next((p.name for p in self._signature.parameters.values() if p.kind is p.VAR_POSITIONAL), None)

    def names(self) -> tuple[str, ...]:
        """Parameter names in order; those that take any number carry their stars."""
        stars = {self._rest: "**", self._more: "*"}
        return tuple(stars.get(name, "") + name for name in self._signature.parameters)

    def takes(self, name: str) -> bool:
        """Whether `name` is a parameter of its own."""
        return name in self._signature.parameters and name not in (self._rest, self._more)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        """Give every argument its name."""
        bound = self._signature.bind_partial(*args, **kwargs)
        if self._rest is not None:
            bound.arguments[self._rest] = dict(bound.arguments.get(self._rest, {}))
        return Bound(bound, self._rest, self._more)


class Bound:
    """One call: arguments can be read and replaced by name, wherever they were given."""

    def __init__(self, bound: inspect.BoundArguments, rest: str | None, more: str | None) -> None:
        self._bound = bound
        self._rest = rest
        self._more = more

    def given(self) -> dict[str, Any]:
        """Every argument that is not None; surplus positional ones under their starred name."""
        named = {name: value for name, value in self._bound.arguments.items() if name not in (self._rest, self._more)}
        if self._rest is not None:
            named |= self._bound.arguments[self._rest]
        if self._more is not None and self._bound.arguments.get(self._more):
            named[f"*{self._more}"] = self._bound.arguments[self._more]
        return {name: value for name, value in named.items() if value is not None}

    def replace(self, name: str, value: Any) -> None:
        """Put `value` where `name` was given, or would be; surplus positional arguments go by their starred name."""
        if name == f"*{self._more}":
            self._bound.arguments[name[1:]] = tuple(value)
        elif name in self._bound.signature.parameters or self._rest is None:
            self._bound.arguments[name] = value
        else:
            self._bound.arguments[self._rest][name] = value

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as a module takes it."""
        ordered = {
            name: self._bound.arguments[name]
            for name in self._bound.signature.parameters
            if name in self._bound.arguments
        }
        self._bound.arguments.clear()
        self._bound.arguments.update(ordered)
        return self._bound.args, self._bound.kwargs
