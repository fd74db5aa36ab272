"""Ray clusters for tests: one for each module, ended with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_parallel.workers import Cluster, start_cluster

SHARED_BYTES = 32 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A local cluster with room for 32 MiB of weights."""
    with start_cluster(workers=2, shared_bytes=SHARED_BYTES) as started:
        yield started
