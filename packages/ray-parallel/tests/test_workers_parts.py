"""The parts of a group that need no cluster: names, devices, options, versions, meeting points, contexts."""

from __future__ import annotations

import dataclasses
import socket
import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ray_parallel.workers import (
    GpuIndexError,
    GroupOptions,
    InvalidRequestError,
    PortTakenError,
    Recipe,
    WorkerContext,
    resolve,
)
from ray_parallel.workers.cluster._rendezvous import join_meeting, open_meeting, split_address
from ray_parallel.workers.group import _cuda as cuda
from ray_parallel.workers.group._actors import python_path
from ray_parallel.workers.group._context import StoppedAtStep
from ray_parallel.workers.group._devices import pin
from ray_parallel.workers.group._versions import differences, versions
from ray_parallel.workers.group._worker import Worker

GPUS = [f"GPU-{letter}" for letter in "abcd"]


@given(chosen=st.permutations(range(4)).flatmap(lambda order: st.integers(1, 4).map(lambda count: order[:count])))
def test_indices_are_those_of_the_host(chosen: list[int]) -> None:
    text = " , ".join(map(str, chosen))
    assert pin(len(chosen), text, "auto", GPUS) == tuple(GPUS[index] for index in chosen)


@given(workers=st.integers(1, 6), count=st.integers(0, 6))
def test_without_indices_the_first_ones_are_taken_or_all_is_refused(workers: int, count: int) -> None:
    gpus = [f"GPU-{number}" for number in range(count)]
    if count == 0:
        assert pin(workers, "", "auto", gpus) == ("",) * workers
    elif count < workers:
        with pytest.raises(InvalidRequestError, match=f"{workers} workers need {workers} GPUs.*sees {count}"):
            pin(workers, "", "auto", gpus)
    else:
        assert pin(workers, "", "auto", gpus) == tuple(gpus[:workers])
    assert pin(workers, "", "cpu", gpus) == ("",) * workers


@pytest.mark.parametrize(
    ("text", "workers", "reason"),
    [
        ("0,x", 2, "'x' is no index; write numbers separated by commas"),
        ("0,-1", 2, "'-1' is no index"),
        ("0,²", 2, "'²' is no index"),
        ("1,1", 2, "names GPU 1 twice"),
        ("0,4", 2, "there is no GPU 4; this process sees only 4, numbered from 0"),
        ("0,1,2", 2, "names 3 GPUs for 2 workers; name one for each"),
    ],
)
def test_indices_that_make_no_sense_are_refused(text: str, workers: int, reason: str) -> None:
    with pytest.raises(GpuIndexError) as refused:
        pin(workers, text, "auto", GPUS)
    assert reason in str(refused.value)
    assert refused.value.text == text


def test_indices_contradict_the_cpu() -> None:
    with pytest.raises(GpuIndexError, match="the workers compute on the CPU"):
        pin(2, "0,1", "cpu", GPUS)


class FakeProperties:
    def __init__(self, uuid: str) -> None:
        self.uuid = uuid


def test_gpus_are_named_as_cuda_visible_devices_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = ["8a3f", "MIG-77"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: FakeProperties(uuids[index]))
    assert cuda.visible_gpus() == ("GPU-8a3f", "MIG-77")
    with pytest.raises(RuntimeError, match="was given one GPU but sees 2"):
        cuda.take_only_gpu()


def test_without_cuda_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.visible_gpus() == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 0}, {"threads": 0}, {"call_seconds": 0.0}, {"step_seconds": float("inf")},
        {"start_seconds": float("nan")}, {"cancel_seconds": -1.0}, {"device": "tpu"}, {"torch_dist_address": "here"},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        dataclasses.replace(GroupOptions(), **changes)


def test_a_recipe_is_plain() -> None:
    with pytest.raises(InvalidRequestError, match=r"factory 'build' names no function"):
        Recipe(factory="build")
    with pytest.raises(InvalidRequestError, match=r"the arguments of the factory\['model'\] is a Linear"):
        Recipe(factory="a:b", arguments={"model": torch.nn.Linear(1, 1)})


def test_names_are_resolved_where_they_run() -> None:
    assert resolve("json:dumps")({}) == "{}"
    with pytest.raises(InvalidRequestError, match="finds no module 'nowhere'; install it there"):
        resolve("nowhere.at.all:build")
    with pytest.raises(InvalidRequestError, match="the module has no function 'nothing'"):
        resolve("json:nothing")


def test_a_module_that_fails_to_import_says_so_itself(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_for_test.py").write_text("import a_library_that_is_missing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        resolve("broken_for_test:build")


@given(
    mine=st.dictionaries(st.sampled_from("abc"), st.sampled_from("12")),
    theirs=st.dictionaries(st.sampled_from("abc"), st.sampled_from("12")),
)
def test_versions_agree_only_when_all_do(mine: dict[str, str], theirs: dict[str, str]) -> None:
    found = differences(mine, theirs)
    assert (not found) == (mine == theirs)
    assert all(mine.get(name, "none") == here and theirs.get(name, "none") == there
               for name, (here, there) in found.items())  # fmt: skip


def test_the_versions_that_matter_are_compared() -> None:
    assert set(versions()) == {"python", "torch", "ray", "ray-parallel"}
    assert versions()["torch"] == torch.__version__


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:x", "host:70000", "host:²"])
def test_an_address_has_a_host_and_a_port(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no address"):
        split_address(text)


def test_the_meeting_point_holds_its_port() -> None:
    timeout = timedelta(seconds=20)
    store, port = open_meeting("127.0.0.1", 0, timeout)
    with pytest.raises(PortTakenError):
        open_meeting("127.0.0.1", port, timeout)
    guest = join_meeting("127.0.0.1", port, timeout)
    guest.set("said", "hello")
    assert store.get("said") == b"hello"


def test_the_meeting_point_is_at_one_address_only() -> None:
    store, port = open_meeting("127.0.0.1", 0, timedelta(seconds=20))
    # Were it listening everywhere, the port would be taken on this other loopback address too.
    with socket.create_server(("127.0.0.2", port)):
        store.set("alive", "yes")


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        open_meeting("192.0.2.1", 0, timedelta(seconds=1))


def context(rank: int = 0, size: int = 1) -> WorkerContext:
    return WorkerContext(rank=rank, size=size, device=torch.device("cpu"), weights=None, generation=1)


def test_outside_of_a_call_steps_are_told_to_nobody() -> None:
    context().step(1, 2)


def test_only_rank_0_tells_and_all_stop() -> None:
    for rank in (0, 1):
        told: list[Any] = []
        one = context(rank, 2)
        one._emit, one._wants_stop = told.append, lambda: False
        one.step(1, 3, torch.ones(1))
        assert [record["done"] for record in told] == ([1] if rank == 0 else [])
        one._wants_stop = lambda: True
        with pytest.raises(StoppedAtStep) as stopped:
            one.step(2, 3)
        assert stopped.value.step == 2


def test_stopping_is_no_error_that_somebody_could_handle() -> None:
    assert not issubclass(StoppedAtStep, Exception)


def test_the_folders_of_modules_are_passed_on_once(tmp_path: Any) -> None:
    assert python_path([str(tmp_path), "/nowhere/at/all", str(tmp_path), __file__]) == str(tmp_path)


def run_worker(worker: Worker, function: str, arguments: dict[str, Any], call: int = 1) -> list[dict[str, Any]]:
    return list(worker.run(call, function, arguments))


@pytest.fixture
def alone() -> Worker:
    """A worker in this process, without others."""
    worker = Worker(0, 1, 1)
    assert worker.do("join", "127.0.0.1", 0, False, 5.0, 5.0)["event"] == "done"
    assert worker.do("load", "worker_tasks:build", {"factor": 3.0}, None)["event"] == "done"
    assert not dist.is_initialized()
    return worker


def test_a_worker_answers_with_records(alone: Worker) -> None:
    records = run_worker(alone, "worker_tasks:steps", {"count": 2})
    assert [record["event"] for record in records] == ["step", "step", "done"]
    assert records[-1]["value"] == {"done": 2}
    failed = run_worker(alone, "worker_tasks:not_plain", {})[-1]
    assert (failed["event"], failed["refused"]) == ("failed", True)
    assert failed["kind"].endswith("InvalidRequestError")


def test_a_function_that_leaves_by_exit_is_told_as_a_failure(alone: Worker) -> None:
    failed = run_worker(alone, "worker_tasks:leave", {"status": 3})[-1]
    assert (failed["event"], failed["kind"], failed["reason"]) == ("failed", "builtins.SystemExit", "3")
    assert run_worker(alone, "worker_tasks:steps", {"count": 1})[-1]["event"] == "done"


def test_a_cancelled_call_ends_at_its_next_step(alone: Worker) -> None:
    threading.Timer(0.2, alone.cancel, (7,)).start()
    records = run_worker(alone, "worker_tasks:steps", {"count": 10_000, "seconds": 0.01}, call=7)
    assert records[-1]["event"] == "cancelled"
    assert records[-1]["step"] == records[-2]["done"]
    assert run_worker(alone, "worker_tasks:steps", {"count": 1}, call=8)[-1]["event"] == "done"


def test_a_worker_that_was_not_loaded_says_so() -> None:
    failed = run_worker(Worker(0, 1, 1), "worker_tasks:whoami", {})[-1]
    assert (failed["reason"], failed["refused"]) == ("the worker was not loaded", False)
    assert Worker(0, 1, 1).do("load", None, {}, None)["event"] == "failed"
