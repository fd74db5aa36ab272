"""Ray workers: started, pinned, supervised and ended; one copy of the weights for all of them.

Importing this package imports torch but not ray; ray is imported when a cluster is started or connected to.

May import: _errors.
"""

from ._call import Progress
from ._cluster import Cluster, connect_cluster, start_cluster
from ._context import WorkerContext
from ._errors import (
    CancelledError,
    ClusterError,
    DeadlineExceededError,
    GpuIndexError,
    GroupStateError,
    InvalidRequestError,
    ObjectStoreSizeError,
    PortTakenError,
    RanksDisagreeError,
    RunRefusedError,
    SharedWriteError,
    VersionMismatchError,
    WeightsError,
    WorkerDiedError,
    WorkerFailure,
    WorkerRaisedError,
    WorkersError,
)
from ._files import FileStamp
from ._group import WorkerGroup
from ._layout import TensorSlot, WeightsLayout
from ._names import resolve
from ._open import OpenWeights
from ._options import GroupOptions, Recipe
from ._shared import SharedWeights
from ._sharing import Share, SharingReport
from ._store import StoreRoom

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
