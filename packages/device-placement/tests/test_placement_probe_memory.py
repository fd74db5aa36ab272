"""Host memory from the files of Linux, containers included, and from the answers of other systems."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from device_placement import DeviceUnavailableError
from device_placement.machine._host_memory import host_memory, parse_vm_stat

GIB = 1 << 30
KIB = 1 << 10

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the files of Linux")


def system(root: Path, *, total: int = 64 * GIB, available: int = 48 * GIB, groups: str | None = None) -> Path:
    """A folder that looks like / to somebody who reads only memory."""
    write(
        root / "proc/meminfo", f"MemTotal: {total // KIB} kB\nMemFree: 1024 kB\nMemAvailable: {available // KIB} kB\n"
    )
    if groups is not None:
        write(root / "proc/self/cgroup", groups)
    return root


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="ascii")


def group_v2(folder: Path, *, limit: str, used: int, stat: str = "") -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", stat)


def test_without_limits_it_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert host_memory(system(tmp_path)) == (48 * GIB, 64 * GIB)


def test_a_limit_of_the_container_is_the_total(tmp_path: Path) -> None:
    system(tmp_path, groups="0::/\n")
    group_v2(tmp_path / "sys/fs/cgroup", limit=str(16 * GIB), used=4 * GIB)
    assert host_memory(tmp_path) == (12 * GIB, 16 * GIB)


def test_cached_files_charged_to_the_container_count_as_free(tmp_path: Path) -> None:
    system(tmp_path, groups="0::/\n")
    stat = f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}\n"
    group_v2(tmp_path / "sys/fs/cgroup", limit=str(16 * GIB), used=4 * GIB, stat=stat)
    assert host_memory(tmp_path) == (15 * GIB, 16 * GIB)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    system(tmp_path, groups="0::/user/session\n")
    group_v2(tmp_path / "sys/fs/cgroup/user/session", limit="max", used=GIB)
    group_v2(tmp_path / "sys/fs/cgroup/user", limit=str(8 * GIB), used=3 * GIB)
    assert host_memory(tmp_path) == (5 * GIB, 8 * GIB)


def test_a_limit_above_what_there_is_changes_nothing(tmp_path: Path) -> None:
    system(tmp_path, groups="0::/\n")
    group_v2(tmp_path / "sys/fs/cgroup", limit=str(1 << 62), used=4 * GIB)
    assert host_memory(tmp_path) == (48 * GIB, 64 * GIB)


def test_more_used_than_allowed_is_nothing_free_not_less(tmp_path: Path) -> None:
    system(tmp_path, groups="0::/\n")
    group_v2(tmp_path / "sys/fs/cgroup", limit=str(2 * GIB), used=3 * GIB)
    assert host_memory(tmp_path) == (0, 2 * GIB)


def test_the_first_version_of_control_groups_counts_too(tmp_path: Path) -> None:
    system(tmp_path, groups="5:devices:/\n4:memory:/docker/abc\n0::/\n")
    folder = tmp_path / "sys/fs/cgroup/memory/docker/abc"
    write(folder / "memory.limit_in_bytes", f"{10 * GIB}\n")
    write(folder / "memory.usage_in_bytes", f"{6 * GIB}\n")
    stat = f"inactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"
    write(folder / "memory.stat", stat)
    assert host_memory(tmp_path) == (5 * GIB, 10 * GIB)


def test_a_path_that_lies_outside_the_container_falls_back_to_what_is_mounted(tmp_path: Path) -> None:
    system(tmp_path, groups="0::/kubepods/pod7/c1\n")
    group_v2(tmp_path / "sys/fs/cgroup", limit=str(4 * GIB), used=GIB)
    assert host_memory(tmp_path) == (3 * GIB, 4 * GIB)


@pytest.mark.parametrize("content", ["", "MemTotal: 5 kB\n", "gibberish"])
def test_a_kernel_that_does_not_say_is_an_error_with_a_way_out(tmp_path: Path, content: str) -> None:
    write(tmp_path / "proc/meminfo", content)
    with pytest.raises(DeviceUnavailableError, match=r"Hardware\(\.\.\.\)"):
        host_memory(tmp_path)


def test_no_proc_at_all_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match="by hand"):
        host_memory(tmp_path)


def test_this_machine_answers() -> None:
    free, total = host_memory()
    assert 0 < free <= total


def test_vm_stat_counts_what_would_be_given_up() -> None:
    answer = "\n".join(
        [
            "Mach Virtual Memory Statistics: (page size of 4096 bytes)",
            "Pages free:                               10.",
            "Pages active:                            100.",
            "Pages inactive:                           20.",
            "Pages speculative:                         3.",
            "Pages wired down:                        400.",
            "Pages purgeable:                           7.",
        ]
    )
    assert parse_vm_stat(answer) == 40 * 4096


def test_an_answer_of_vm_stat_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(DeviceUnavailableError, match="vm_stat"):
        parse_vm_stat("no such command")
