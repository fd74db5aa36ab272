"""Code by name: ``"module:function"``, imported where it runs, never pickled."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ray_parallel.workers._errors import InvalidRequestError


def require_name(name: str, what: str) -> None:
    """Refuse what cannot name a function, before a worker is asked for it.

    Raises:
        InvalidRequestError: it is not ``"package.module:function"``.

    >>> require_name("diffusers.models:build", "factory")
    >>> require_name("diffusers.build", "factory")
    Traceback (most recent call last):
    ray_parallel.workers._errors.InvalidRequestError: factory 'diffusers.build' names no function; ...
    """
    module, separator, function = name.partition(":")
    if not separator or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise InvalidRequestError(f'{what} {name!r} names no function; write "package.module:function"')


def resolve(name: str) -> Callable[..., Any]:
    """Import a function by its name.

    Raises:
        InvalidRequestError: there is no such function here.
        ImportError: importing its module fails for another reason.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InvalidRequestError(
            f"{name!r}: the worker finds no module {error.name!r}; install it there, or add its folder to PYTHONPATH"
        ) from error
    found = getattr(module, function_name, None)
    if not callable(found):
        raise InvalidRequestError(f"{name!r}: the module has no function {function_name!r}; check the spelling")
    return found  # type: ignore[no-any-return]
