"""Read-only pages of shared memory: a write ends the writer, and nobody else, until the memory is given back."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import sys
from typing import Any

import numpy as np
import pytest

from ray_parallel.workers.weights._protect import protect

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are protected on Linux")

PAGE = mmap.PAGESIZE


def shared(pages: int) -> tuple[mmap.mmap, Any]:
    """Memory that other processes could have too, as the object store has it, and all of it as an array."""
    memory = mmap.mmap(-1, pages * PAGE)
    return memory, np.frombuffer(memory, dtype=np.uint8)


def ends_of_a_writer(memory: mmap.mmap, place: int) -> int:
    """Write in a process of its own that has the same pages; 0, or the signal that ended it."""
    writer = os.fork()
    if not writer:
        faulthandler.disable()  # what is expected needs no report
        memory[place] = 7
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])


@pytest.mark.parametrize(("place", "written"), [(0, True), (PAGE, False), (3 * PAGE - 1, False), (3 * PAGE, True)])
def test_a_write_ends_the_process_that_writes(place: int, written: bool) -> None:
    memory, _ = shared(4)
    arrays = [np.frombuffer(memory, np.uint8, count=PAGE, offset=page * PAGE) for page in (1, 2)]
    assert protect(arrays) == 2 * PAGE
    assert ends_of_a_writer(memory, place) == (0 if written else -signal.SIGSEGV)
    assert memory[place] == (7 if written else 0)
    arrays.clear()
    assert ends_of_a_writer(memory, place) == 0
    assert memory[place] == 7


def test_pages_that_hold_something_else_too_stay_as_they_are() -> None:
    memory, _ = shared(4)
    inner = np.frombuffer(memory, np.uint8, count=2 * PAGE + 20, offset=PAGE - 10)
    assert protect([inner]) == 2 * PAGE
    memory[PAGE - 10] = memory[3 * PAGE + 9] = 1
    assert (inner[0], inner[-1]) == (1, 1)


@pytest.mark.parametrize("count", [0, 1, PAGE - 1])
def test_less_than_a_page_is_left_alone(count: int) -> None:
    memory, _ = shared(2)
    assert protect([np.frombuffer(memory, np.uint8, count=count, offset=100)]) == 0
    memory[100] = 1


def test_memory_of_this_process_alone_is_left_alone() -> None:
    own = np.zeros(8 * PAGE, dtype=np.uint8)
    assert protect([own]) == 0
    own[:] = 1


def test_all_arrays_must_go_before_the_memory_can_be_written_again() -> None:
    memory, _ = shared(4)
    arrays = [np.frombuffer(memory, np.uint8, count=PAGE, offset=place * PAGE) for place in (0, 1, 2)]
    assert protect(arrays) == 3 * PAGE
    assert "r--s" in permissions(memory)
    del arrays[1:]
    assert "r--s" in permissions(memory)
    arrays.clear()
    assert "r--s" not in permissions(memory)
    memory[PAGE] = 1


def permissions(memory: mmap.mmap) -> set[str]:
    """What the kernel allows for the pages of a mapping."""
    begin = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    found = set()
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 (a file of the kernel)
        for line in maps:
            span, allowed, *_ = line.split(maxsplit=2)
            low, high = (int(address, 16) for address in span.split("-"))
            if low < begin + len(memory) and begin < high:
                found.add(allowed)
    return found
