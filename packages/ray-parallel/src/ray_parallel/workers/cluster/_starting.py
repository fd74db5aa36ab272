"""How long Ray's servers may take to start: Ray gives them 30 seconds, which a busy machine exceeds."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_parallel.workers.cluster._errors import ClusterError


class LateStartError(ClusterError):
    """Ray's servers did not answer in time."""


@contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """While entered, ``ray.init`` waits so long for the servers that it starts.

    Raises:
        LateStartError: from ``ray.init``, when they do not answer by then.
    """
    services: Any = importlib.import_module("ray._private.services")
    ask, give_up = services.get_node, time.monotonic() + seconds

    def ask_again(*arguments: Any) -> Any:
        while True:
            try:
                return ask(*arguments)
            except RuntimeError as error:  # not registered yet
                if time.monotonic() > give_up:
                    raise LateStartError(
                        f"Ray's servers did not answer within {seconds:g} s; raise start_seconds, or look for what "
                        "keeps this machine busy"
                    ) from error
            time.sleep(0.05)

    services.get_node = ask_again
    try:
        yield
    finally:
        services.get_node = ask


def forget_token() -> None:
    """Let Ray read its token again: a process that used another cluster before still has that one's."""
    loader: Any = getattr(importlib.import_module("ray._raylet"), "AuthenticationTokenLoader", None)
    if loader is not None:
        loader.instance().reset_cache()
