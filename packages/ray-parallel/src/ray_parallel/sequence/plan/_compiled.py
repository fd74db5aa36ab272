"""Modules that went through torch.compile: the plan looks through its wrappers, and its hooks run uncompiled.

Code that was compiled before a hook was set runs without the hook, and code that is compiled with one may be reused
for another model of the same class. Both would leave out a cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def without_compiler(module: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` was called with, or the module itself."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """While entered, the module runs as it was written; modules inside it may still be compiled."""
    before: list[tuple[nn.Module, str, Any]] = []
    inner: Any = getattr(module, "_orig_mod", None)
    while isinstance(inner, nn.Module):
        before.append((module, "forward", module.__dict__.get("forward")))
        module.__dict__["forward"] = inner
        module, inner = inner, getattr(inner, "_orig_mod", None)
    if getattr(module, "_compiled_call_impl", None) is not None:
        before.append((module, "_compiled_call_impl", module._compiled_call_impl))
        module.__dict__["_compiled_call_impl"] = None
    try:
        yield
    finally:
        for changed, name, value in reversed(before):
            changed.__dict__[name] = value
