"""How large the store is, and what does not fit: decided before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_parallel.workers import InvalidRequestError, ObjectStoreSizeError
from ray_parallel.workers.weights._sizes import (
    GIB,
    MIB,
    SMALLEST_STORE_BYTES,
    memory_free_bytes,
    shm_free_bytes,
    store_size,
)
from ray_parallel.workers.weights._store import StoreRoom

ROOMY = 1 << 50


def store_bytes(shared: int, asked: float, *, shm: int = ROOMY, disk: int = ROOMY, memory: int = ROOMY) -> int:
    """Size of a store on a machine that is roomy but for what is given."""
    return store_size(shared, asked, shm_bytes=shm, disk_bytes=disk, memory_bytes=memory).size_bytes


sizes = st.integers(0, 1 << 40)


@given(shared=sizes)
def test_what_is_computed_holds_the_weights(shared: int) -> None:
    size = store_bytes(shared, 0.0)
    assert size >= SMALLEST_STORE_BYTES
    assert size <= shared / 0.95 + 128 * MIB + 1
    StoreRoom(size).take(shared)


@given(shared=sizes, asked=st.floats(0.001, 2000))
def test_a_request_is_kept_or_refused(shared: int, asked: float) -> None:
    try:
        size = store_bytes(shared, asked)
    except ObjectStoreSizeError as error:
        assert error.needed_bytes > int(asked * GIB) == error.available_bytes
    else:
        assert size == int(asked * GIB)
        StoreRoom(size).take(shared)


@given(shared=sizes, shm=sizes, disk=sizes, memory=sizes)
def test_the_machine_keeps_a_tenth(shared: int, shm: int, disk: int, memory: int) -> None:
    try:
        size = store_size(shared, 0.0, shm_bytes=shm, disk_bytes=disk, memory_bytes=memory)
    except ObjectStoreSizeError as error:
        assert error.needed_bytes > error.available_bytes
        assert error.available_bytes in (shm, memory)
    else:
        assert size.size_bytes <= 0.9 * min(shm if size.in_shared_memory else disk, memory)
        assert size.in_shared_memory or size.size_bytes <= 256 * MIB


def test_a_store_without_weights_needs_no_shared_memory() -> None:
    size = store_size(0, 0.0, shm_bytes=64 * MIB, disk_bytes=ROOMY, memory_bytes=ROOMY)
    assert not size.in_shared_memory
    assert store_size(0, 0.0, shm_bytes=ROOMY, disk_bytes=0, memory_bytes=ROOMY).in_shared_memory
    with pytest.raises(ObjectStoreSizeError, match=r"/dev/shm has 64 MiB.*from a file .*--shm-size"):
        store_bytes(GIB, 0.0, shm=64 * MIB)


def test_a_refusal_names_numbers_and_remedy() -> None:
    with pytest.raises(ObjectStoreSizeError) as small:
        store_bytes(20 * GIB, 2.0)
    assert str(small.value) == (
        "the weights in the object store need 21.2 GiB but ray_object_store_gb = 2 has 2 GiB; nothing was loaded, "
        "and nothing is spilled to disk; set ray_object_store_gb to 0 to have it computed, or load the model from a "
        "file, which needs none"
    )
    with pytest.raises(ObjectStoreSizeError, match=r"/dev/shm has 4 GiB.*load the model from a file"):
        store_bytes(20 * GIB, 0.0, shm=4 * GIB)
    with pytest.raises(ObjectStoreSizeError, match=r"the memory of this machine has 16 GiB"):
        store_bytes(20 * GIB, 0.0, memory=16 * GIB)


@pytest.mark.parametrize("asked", [-1.0, float("nan"), float("inf")])
def test_a_senseless_request_is_refused(asked: float) -> None:
    with pytest.raises(InvalidRequestError, match="ray_object_store_gb is"):
        store_bytes(0, asked)


def test_a_request_for_next_to_nothing_is_none_for_what_is_needed() -> None:
    with pytest.raises(ObjectStoreSizeError, match=r"commands and latents in the object store need 80 MiB"):
        store_bytes(0, 1e-12)


@given(parts=st.lists(st.integers(0, 100 * MIB), max_size=20))
def test_room_is_never_overdrawn_and_comes_back(parts: list[int]) -> None:
    room = StoreRoom(GIB)
    taken = []
    for part in parts:
        before = room.taken_bytes
        try:
            room.take(part)
            taken.append(part)
        except ObjectStoreSizeError:
            assert room.taken_bytes == before
            assert before + part > 0.95 * GIB - 1
    assert room.taken_bytes == sum(taken) <= 0.95 * GIB
    for part in taken:
        room.give(part)
    assert room.taken_bytes == 0


def test_this_machine_has_memory() -> None:
    assert memory_free_bytes() > 0
    assert shm_free_bytes() > 0


def write_machine(root: Path, limit: str | None, used: int = 0) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal:       100 kB\nMemAvailable:    60 kB\n")
    if limit is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (root / "sys/fs/cgroup/memory.current").write_text(f"{used}\n")
    return root


@pytest.mark.parametrize(
    ("limit", "used", "free_kib"),
    [(None, 0, 60), ("max", 0, 60), ("40960", 10240, 30), ("40960", 99999, 0), ("999999999", 0, 60)],
)
def test_a_container_limits_the_memory(tmp_path: Path, limit: str | None, used: int, free_kib: int) -> None:
    assert memory_free_bytes(write_machine(tmp_path, limit, used)) == free_kib * 1024
