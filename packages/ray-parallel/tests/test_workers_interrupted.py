"""A driver that is interrupted or killed, and a cluster of another process: real processes, real signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from ray_parallel.workers import GroupOptions, WorkerGroup, start_cluster
from ray_parallel.workers.cluster._processes import Process, descendants

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process leaves behind is read from /proc"),
]

TESTS = str(Path(__file__).parent)

DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ray_parallel.workers import GroupOptions, Recipe, WorkerGroup, start_cluster
from ray_parallel.workers.cluster._processes import descendants
import os
with start_cluster(workers=2) as cluster, WorkerGroup(cluster, Recipe(factory="worker_tasks:build")) as group:
    group.start()
    print(cluster.folder, *(one.pid for one in descendants(os.getpid())), flush=True)
    group.call("worker_tasks:steps", {"count": 100000, "seconds": 0.05})
"""


CLOSER = """
import os, sys
from ray_parallel.workers import start_cluster
from ray_parallel.workers.cluster import _cluster
from ray_parallel.workers.cluster._processes import descendants
def interrupted(*processes, **patience):
    raise KeyboardInterrupt
_cluster.end = interrupted
cluster = start_cluster(workers=1)
print(cluster.folder, *(one.pid for one in descendants(os.getpid())), flush=True)
cluster.close()
"""

HEAD = """
import sys
from ray_parallel.workers import start_cluster
with start_cluster(workers=1) as cluster:
    import ray
    print("address", ray.get_runtime_context().gcs_address, cluster.token, flush=True)
    sys.stdin.readline()
"""

GUEST = """
import os, sys
from ray_parallel.workers import GroupOptions, WorkerGroup, connect_cluster
options = GroupOptions(workers=2, environment={"PYTHONPATH": os.pathsep.join(sys.argv[2:])})
with connect_cluster(sys.argv[1]) as cluster, WorkerGroup(cluster, options=options) as group:
    assert not cluster.is_local
    print("ranks", [answer["rank"] for answer in group.call("worker_tasks:whoami")])
"""


def words_after(process: subprocess.Popen[str], word: str) -> list[str]:
    """The words of the first line that begins with one."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.split()
    raise AssertionError(process.communicate()[1])


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def require_gone(processes: Sequence[Process], folder: str, seconds: float = 20) -> None:
    """Soon no process is left, nor the folder."""
    give_up = time.monotonic() + seconds
    while (any(one.is_alive() for one in processes) or Path(folder).exists()) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert [one.command_line() for one in processes if one.is_alive()] == []
    assert not Path(folder).exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_driver_takes_everything_with_it(how: signal.Signals) -> None:
    driver = start(DRIVER, TESTS)
    folder, *pids = words_after(driver, "/")
    found = [one for one in descendants(driver.pid) if str(one.pid) in pids]
    assert len(found) == len(pids) > 4
    time.sleep(0.3)
    driver.send_signal(how)
    driver.communicate(timeout=60)
    assert driver.returncode != 0
    require_gone(found, folder)


@pytest.mark.parametrize("moment", range(int(os.environ.get("KILL_MOMENTS", "3"))))
def test_killed_at_any_moment_nothing_is_left(moment: int) -> None:
    """The driver or one of the processes that it started, while it starts, meets, loads, works or ends.

    All but the watcher: without it only the next cluster takes away what is left, as the test below shows. Before the
    watcher is there, while the cluster starts, Ray's agents end by themselves, after up to a minute. The weekly run
    sets KILL_MOMENTS=20.
    """
    chance = random.Random(moment)
    driver = start(DRIVER, TESTS)
    try:
        time.sleep(chance.uniform(1, 25))
        found = descendants(driver.pid)
        folders = {
            word for one in found for word in one.command_line().split() if "/ray-parallel-" in word and word[0] == "/"
        }
        victim = chance.choice([driver.pid, *(one.pid for one in found if "tidy_up" not in one.command_line())])
        with suppress(ProcessLookupError):  # it ended by itself just now
            os.kill(victim, signal.SIGKILL)
        time.sleep(chance.uniform(0, 3))
        seen = {*found, *descendants(driver.pid)}
    finally:
        driver.kill()
        driver.communicate(timeout=60)
    for folder in {str(Path("/", *Path(word).parts[1:3])) for word in folders} or {"/nowhere"}:
        require_gone([*seen], folder, 90)


def test_nothing_is_left_when_closing_is_interrupted() -> None:
    driver = start(CLOSER)
    folder, *pids = words_after(driver, "/")
    found = [one for one in descendants(driver.pid) if str(one.pid) in pids]
    assert driver.wait(timeout=60) != 0
    require_gone(found, folder)


def test_the_next_cluster_works_and_takes_away_what_was_left(tmp_path: Path) -> None:
    """Even where the watcher was killed too, as when a machine runs out of memory."""
    driver = start(DRIVER, TESTS)
    folder, *_ = words_after(driver, "/")
    watchers = [one for one in descendants(driver.pid) if "tidy_up" in one.command_line()]
    assert len(watchers) == 1
    subprocess.run(["kill", "-9", str(watchers[0].pid), str(driver.pid)], check=True)
    driver.communicate(timeout=120)
    assert Path(folder).exists()
    with start_cluster(workers=1) as cluster, WorkerGroup(cluster, options=GroupOptions(workers=1)) as workers:
        assert not Path(folder).exists()
        assert workers.call("worker_tasks:whoami")[0]["rank"] == 0


def test_two_drivers_at_once_do_not_meet() -> None:
    drivers = [start(DRIVER, TESTS) for _ in range(2)]
    try:
        (one, *_), (other, *_) = (words_after(driver, "/") for driver in drivers)
        assert one != other
        drivers[0].kill()
        drivers[0].communicate(timeout=60)
        time.sleep(3)
        assert drivers[1].poll() is None
        assert Path(other).exists()
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate(timeout=60)


def test_a_cluster_of_another_process_is_used_by_its_address() -> None:
    head = start(HEAD)
    try:
        _, address, token = words_after(head, "address")
        paths = [str(Path(path).absolute()) for path in sys.path if Path(path).is_dir()]
        done = subprocess.run(
            [sys.executable, "-c", GUEST, address, *paths],
            env={**os.environ, "RAY_AUTH_TOKEN_PATH": token}, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert "ranks [0, 1]" in done.stdout, done.stderr
        assert head.poll() is None
    finally:
        head.communicate("done\n", timeout=60)
    assert head.returncode == 0
