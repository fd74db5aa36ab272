"""Ray workers: started, pinned, supervised and ended; one copy of the weights for all of them.

Importing this package imports torch but not ray; ray is imported when a cluster is started or connected to.

May import: _errors.
"""

from ray_parallel.workers._errors import InvalidRequestError, WorkersError
from ray_parallel.workers.cluster._cluster import Cluster, connect_cluster, start_cluster
from ray_parallel.workers.cluster._errors import ClusterError, PortTakenError
from ray_parallel.workers.group._call import Progress
from ray_parallel.workers.group._context import WorkerContext
from ray_parallel.workers.group._errors import (
    CancelledError,
    DeadlineExceededError,
    GpuIndexError,
    GroupStateError,
    RanksDisagreeError,
    RunRefusedError,
    VersionMismatchError,
    WorkerDiedError,
    WorkerFailure,
    WorkerRaisedError,
)
from ray_parallel.workers.group._group import WorkerGroup
from ray_parallel.workers.group._names import resolve
from ray_parallel.workers.group._options import GroupOptions, Recipe
from ray_parallel.workers.weights._errors import ObjectStoreSizeError, SharedWriteError, WeightsError
from ray_parallel.workers.weights._files import FileStamp
from ray_parallel.workers.weights._layout import TensorSlot, WeightsLayout
from ray_parallel.workers.weights._open import OpenWeights
from ray_parallel.workers.weights._shared import SharedWeights
from ray_parallel.workers.weights._sharing import Share, SharingReport
from ray_parallel.workers.weights._store import StoreRoom

__all__ = [
    "CancelledError",
    "Cluster",
    "ClusterError",
    "DeadlineExceededError",
    "FileStamp",
    "GpuIndexError",
    "GroupOptions",
    "GroupStateError",
    "InvalidRequestError",
    "ObjectStoreSizeError",
    "OpenWeights",
    "PortTakenError",
    "Progress",
    "RanksDisagreeError",
    "Recipe",
    "RunRefusedError",
    "Share",
    "SharedWeights",
    "SharedWriteError",
    "SharingReport",
    "StoreRoom",
    "TensorSlot",
    "VersionMismatchError",
    "WeightsError",
    "WeightsLayout",
    "WorkerContext",
    "WorkerDiedError",
    "WorkerFailure",
    "WorkerGroup",
    "WorkerRaisedError",
    "WorkersError",
    "connect_cluster",
    "resolve",
    "start_cluster",
]
