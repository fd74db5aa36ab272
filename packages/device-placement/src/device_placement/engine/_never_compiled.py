"""`torch.compiler.disable` at no cost: that one imports the compiler, which takes seconds, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function, and all that it calls, out of what torch.compile traces and compiles.

    The tracer breaks its graph at the call, as it does for every function with this mark; the interpreter's hook passes
    over the function's frames. Both are what `torch.compiler.disable` comes down to. Where this torch has no such
    hook, that does it.
    """
    compiler: Any = torch._C._dynamo.eval_frame
    try:
        skip = compiler._FrameExecStrategy(compiler._FrameAction.SKIP, compiler._FrameAction.SKIP)
        compiler.set_code_exec_strategy(function.__code__, skip)
    except AttributeError:
        disabled: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function
