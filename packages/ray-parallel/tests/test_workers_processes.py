"""Processes by the kernel's list: told apart, ended, and seen gone; real processes, real signals."""

from __future__ import annotations

import os
import sys

import pytest
from process_examples import HOLD, PARENT, STUBBORN, running

from ray_parallel.workers.cluster._processes import Process, descendants, end, process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")


def test_a_killed_process_is_gone_when_the_call_returns() -> None:
    """Its memory is given back first, which takes a tenth of a second here: the kill itself returns long before."""
    with running(HOLD, str(1 << 30)) as (_, held):
        assert end([held], patience_seconds=0) == (held,)
        assert not held.is_alive()


def test_one_that_does_not_listen_is_killed_and_one_that_left_is_not() -> None:
    with running(STUBBORN) as (stubborn, deaf), running(HOLD, "0") as (willing, polite):
        stubborn.terminate()
        assert willing.stdin is not None
        willing.stdin.close()
        assert end([deaf, polite], patience_seconds=1) == (deaf,)
        assert not polite.is_alive()
        assert willing.wait() == 0
        assert stubborn.wait() == -9


def test_ending_waits_for_those_that_end_by_themselves() -> None:
    with running("import time; print(flush=True); time.sleep(0.2)") as (child, short):
        assert end([short], patience_seconds=30) == ()
        assert child.wait() == 0


def test_nothing_to_end_takes_no_time() -> None:
    assert end([], patience_seconds=3600) == ()


def test_a_later_process_with_the_same_number_is_left_alone() -> None:
    with running(HOLD, "0") as (child, found):
        earlier = Process(found.pid, found.started - 1)
        assert not earlier.is_alive()
        assert end([earlier], patience_seconds=3600) == ()
        assert child.poll() is None
        assert found.is_alive()


def test_one_that_ended_but_was_not_collected_does_not_run() -> None:
    with running(HOLD, "0") as (child, found):
        os.kill(child.pid, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not found.is_alive()
        assert found.command_line() == ""


def test_it_is_named_by_its_arguments() -> None:
    with running(HOLD, "7") as (_, found):
        assert found.command_line().split()[0] == sys.executable
        assert found.command_line().split()[-1] == "7"


def test_children_of_children_are_found() -> None:
    with running(PARENT) as (child, found):
        assert child.pid in [one.pid for one in descendants(os.getpid())]
        (grandchild,) = descendants(child.pid)
        assert grandchild in descendants(os.getpid())
        assert end([found, grandchild], patience_seconds=0) == (found, grandchild)


def test_a_number_nobody_has_is_no_process() -> None:
    with running(HOLD, "0") as (child, found):
        child.kill()
        child.wait()
        assert process(child.pid) != found
        assert not found.is_alive()
