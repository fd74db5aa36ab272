"""Every error of the package: one tree, data beside the sentence, and whole when it arrives in another process."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import ray_parallel
from ray_parallel import ParallelError, sequence, workers
from ray_parallel.sequence import Link, Workload

# Where pickle looks for its classes, also when pytest has imported the modules once more for their examples.
_auto = importlib.import_module("ray_parallel.sequence.predicting._choice")
WAN = Workload(tokens=32760, heads=40, head_dim=128, layers=40, forward_seconds=12.0)

INTERNAL = {"LateStartError", "LeftAloneError"}
"""Those that the package itself tells apart from their public base."""

EXAMPLES: dict[str, dict[str, Any]] = {
    "CanaryError": {"error": 0.25, "tolerance": 1e-4},
    "CancelledError": {"step": 3},
    "ChangedModelError": {"model": "a.B", "differences": ["blocks take (x) instead of (y)"]},
    "ClosedWorldError": {"block": "Block (blocks.0)", "arguments": ["mask", "pe"]},
    "DeadlineExceededError": {"what": "a step", "rank": None, "generation": 2, "seconds": 3.0},
    "GpuIndexError": {"text": "0,x", "reason": "'x' is no index", "remedy": "write numbers"},
    "GroupStateError": {"state": "busy", "remedy": "wait"},
    "NotWorthItError": {"prediction": _auto.predict(WAN, Link(), sequence=2), "least_speedup": 9.0},
    "ObjectStoreSizeError": {
        "what": "the weights", "needed_bytes": 3 << 30, "available_bytes": 1 << 30, "where": "/dev/shm",
        "remedy": "use a file",
    },
    "PortTakenError": {"address": "127.0.0.1:9"},
    "PreflightError": {"ranks": [1, 2], "size": 4, "mine": "{x: float32[1]}"},
    "RanksDisagreeError": {"ranks": [1]},
    "RefusedModelError": {"model": "a.B", "reason": "its convolutions mix neighbouring tokens"},
    "RunRefusedError": {"rank": 1, "generation": 1, "kind": "a.B", "reason": "no", "worker_traceback": "line 1"},
    "SharedWriteError": {"names": ["a", "b"]},
    "UnknownModelError": {"model": "a.B", "known": ["c.D"]},
    "VersionMismatchError": {"rank": 0, "differences": {"torch": ("2.14", "2.11")}},
    "WeightsError": {"source": "model.safetensors", "reason": "is cut off", "remedy": "download it again"},
    "WorkerDiedError": {"rank": 1, "generation": 1, "reason": "it was killed"},
    "WorkerRaisedError": {"rank": 1, "generation": 1, "kind": "a.B", "reason": "no", "worker_traceback": "line 1"},
}  # fmt: skip


def kinds(root: type[ParallelError] = ParallelError) -> Iterator[type[ParallelError]]:
    """Every class of the tree."""
    yield root
    for kind in root.__subclasses__():
        if kind.__module__.startswith("ray_parallel."):
            yield from kinds(kind)


def example(kind: type[ParallelError]) -> ParallelError:
    if kind.__name__ == "WorkerFailure":
        return workers.WorkerFailure("it stopped", rank=None, generation=1)
    return kind(**EXAMPLES[kind.__name__]) if kind.__name__ in EXAMPLES else kind("what, why and what to do")


every_kind = pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)


@every_kind
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_arrives_whole(kind: type[ParallelError], copied: Any) -> None:
    sent = example(kind)
    arrived = copied(sent)
    assert type(arrived) is kind
    assert str(arrived) == str(sent)
    assert vars(arrived) == vars(sent)


@every_kind
def test_an_error_says_something_and_carries_what_it_was_given(kind: type[ParallelError]) -> None:
    error = example(kind)
    assert len(str(error)) > 5
    for name, value in EXAMPLES.get(kind.__name__, {}).items():
        parts = value if isinstance(value, list) else [value]
        kept = getattr(error, name, None) in (value, tuple(parts))
        assert kept or all(str(part) in str(error) for part in parts), name


@every_kind
def test_an_error_can_be_caught_by_a_public_name(kind: type[ParallelError]) -> None:
    public = {*ray_parallel.__all__, *sequence.__all__, *workers.__all__}
    assert kind.__name__ in public or (kind.__name__ in INTERNAL and kind.__mro__[1].__name__ in public)


def test_an_example_stands_for_an_error_that_is_there() -> None:
    assert set(EXAMPLES) <= {kind.__name__ for kind in kinds()}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (sequence.PreflightError, "rank 1, 2 of 4 would run another plan, other shapes or other options than the rest"),
        (sequence.UnknownModelError, "no plan is known for a.B; known are: c.D. Derive one and check it"),
        (workers.DeadlineExceededError, "the workers did not finish a step within 3 s and were ended"),
        (workers.ObjectStoreSizeError, "the weights need 3 GiB but /dev/shm has 1 GiB; nothing was loaded"),
        (workers.VersionMismatchError, "(torch 2.14 here, 2.11 there), which can change results silently"),
        (workers.WorkerRaisedError, "worker 1 raised a.B: no; the next call starts the workers again\nline 1"),
    ],
)
def test_a_message_names_the_thing_the_reason_and_the_remedy(kind: type[ParallelError], sentence: str) -> None:
    assert sentence in str(example(kind))
