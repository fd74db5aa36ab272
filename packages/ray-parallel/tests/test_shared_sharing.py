"""The measure of sharing: the kernel's own account, read right, and true for real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_examples import write_file

from ray_parallel.workers import Share, SharedWeights, SharingReport
from ray_parallel.workers.weights._sharing import measure

SMAPS = """\
10000-30000 rw-p 00000000 00:1b 50    /models/a file.safetensors
Size:                128 kB
Rss:                  64 kB
Pss:                  16 kB
Pss_Dirty:             8 kB
Anonymous:             4 kB
VmFlags: rd wr
30000-40000 rw-p 00000000 00:00 0
Rss:                  32 kB
Pss:                  32 kB
Anonymous:            32 kB
50000-60000 r--s 00000000 00:1b 51    /dev/shm/plasma (deleted)
Rss:                  60 kB
Pss:                  20 kB
Anonymous:             0 kB
"""

CHILD = """
import sys
from ray_parallel.workers import SharedWeights
opened = SharedWeights.from_file(sys.argv[1]).open()
opened.touch()
print("ready", flush=True)
sys.stdin.readline()
share = opened.share()
print(share.resident_bytes, share.proportional_bytes, share.own_bytes, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def smaps(tmp_path: Path) -> Path:
    path = tmp_path / "smaps"
    path.write_text(SMAPS)
    return path


@pytest.mark.parametrize(
    ("spans", "kib"),
    [
        ([(0x10000, 8)], (64, 16, 4)),
        ([(0x2FFFF, 1)], (64, 16, 4)),
        ([(0x30000, 1)], (32, 32, 32)),
        ([(0x2FFFF, 2)], (96, 48, 36)),
        ([(0x10000, 8), (0x20000, 8)], (64, 16, 4)),
        ([(0x10000, 1), (0x50000, 1)], (124, 36, 4)),
        ([(0x40000, 0x10000)], (0, 0, 0)),
        ([(0x10000, 0)], (0, 0, 0)),
        ([], (0, 0, 0)),
    ],
)
def test_only_mappings_with_weights_count(smaps: Path, spans: list[tuple[int, int]], kib: tuple[int, int, int]) -> None:
    resident, proportional, own = (1024 * value for value in kib)
    expected = Share(resident_bytes=resident, proportional_bytes=proportional, own_bytes=own)
    assert measure(spans, smaps) == expected


def test_copies_are_what_all_hold_over_what_one_touches() -> None:
    alone = Share(resident_bytes=100, proportional_bytes=100, own_bytes=100)
    assert SharingReport(mode="file", weights_bytes=100, shares=(alone, alone)).copies == 2.0
    assert SharingReport(mode="file", weights_bytes=100, shares=()).copies == 0.0


def test_a_report_reads_as_a_sentence() -> None:
    half = Share(resident_bytes=2 << 20, proportional_bytes=1 << 20, own_bytes=0)
    told = str(SharingReport(mode="file", weights_bytes=2 << 20, shares=(half, half)))
    assert told == "2 MiB of weights by file, 2 workers hold 2 MiB together (1.00 copies), 0 bytes of it private to one"
    assert "not measured" in str(SharingReport(mode="store", weights_bytes=1, shares=()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux accounts for shared pages")
def test_a_written_page_is_counted_as_own(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", {"weight": torch.ones(1 << 20)})
    opened = SharedWeights.from_file(path).open()
    opened.touch()
    share = opened.share()
    assert share is not None
    assert share.own_bytes == 0
    assert opened.layout.size_bytes <= share.resident_bytes <= opened.layout.size_bytes + (8 << 10)
    opened["weight"][:1024] = 0
    share = opened.share()
    assert share is not None
    assert 4 << 10 <= share.own_bytes <= 8 << 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux accounts for shared pages")
def test_processes_that_map_one_file_hold_one_copy(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", {"weight": torch.ones(4 << 20)})
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    shares = []
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        resident, proportional, own = map(int, child.stdout.readline().split())
        shares.append(Share(resident_bytes=resident, proportional_bytes=proportional, own_bytes=own))
    for child in children:
        child.communicate("\n", timeout=60)
    report = SharingReport(mode="file", weights_bytes=16 << 20, shares=tuple(shares))
    assert report.copies == pytest.approx(1.0, abs=0.01)
    assert sum(share.own_bytes for share in shares) == 0
