"""Arguments by name, however a module was called; what was given by position or by name stays so."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ray_parallel.sequence.plan._compiled import without_compiler


class Signature:
    """The parameters of a module's forward.

    Args:
        module: its forward is looked at once, here.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(without_compiler(module).forward).parameters.values()
        stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        self._names = tuple(stars.get(parameter.kind, "") + parameter.name for parameter in parameters)
        self._positional = [
            parameter.name
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        self._surplus = next((name for name in self._names if name.startswith("*") and name[1] != "*"), None)

    def names(self) -> tuple[str, ...]:
        """Parameter names in order; those that take any number carry their stars."""
        return self._names

    def takes(self, name: str) -> bool:
        """Whether `name` is a named parameter."""
        return name in self._names

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        """Give every argument its name.

        Raises:
            TypeError: there are more positional arguments than the forward takes.
        """
        if len(args) > len(self._positional) and self._surplus is None:
            raise TypeError(f"takes {len(self._positional)} positional arguments, but {len(args)} were given")
        return Bound(self._positional[: len(args)], self._surplus, args, kwargs)


class Bound:
    """One call: arguments can be read and replaced by name, wherever they were given.

    A decorated forward may look for an argument among the named ones, so none ever changes its place.
    """

    def __init__(
        self, positional: list[str], surplus: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._positional = positional
        self._surplus = surplus
        self._args = list(args)
        self._kwargs = dict(kwargs)

    def given(self) -> dict[str, Any]:
        """Every argument that is not None; surplus positional ones under their starred name."""
        named = dict(zip(self._positional, self._args, strict=False)) | self._kwargs
        surplus = tuple(self._args[len(self._positional) :])
        if surplus:
            named[str(self._surplus)] = surplus
        return {name: value for name, value in named.items() if value is not None}

    def replace(self, name: str, value: Any) -> None:
        """Put `value` where `name` was given, or by name where it was not; surplus positional arguments as a tuple."""
        if name in self._positional:
            self._args[self._positional.index(name)] = value
        elif name == self._surplus:
            self._args[len(self._positional) :] = value
        else:
            self._kwargs[name] = value

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as a module takes it."""
        return tuple(self._args), self._kwargs
