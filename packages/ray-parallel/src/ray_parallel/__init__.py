"""One sampling run on several workers: exact sequence parallelism, weights loaded once, supervised Ray actors.

`ray_parallel.sequence` splits the tokens of an unmodified model over ranks and needs torch.distributed only;
`ray_parallel.workers` starts and supervises Ray actors that share one copy of the weights; `run` and `Runner` put both
together. Importing this package imports neither ray nor torch: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_parallel._errors import ParallelError
    from ray_parallel._loop import flow_euler
    from ray_parallel._run import Runner, RunResult, run

__all__ = ["ParallelError", "RunResult", "Runner", "flow_euler", "run"]

_HOMES = {
    "ParallelError": "_errors",
    "RunResult": "_run",
    "Runner": "_run",
    "flow_euler": "_loop",
    "run": "_run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
