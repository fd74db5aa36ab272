"""Sequence parallelism for unmodified models: plans as data, exact attention over cut token streams.

Needs torch.distributed only.

May import: _errors.
"""

from ray_parallel._errors import (
    CanaryError,
    ChangedModelError,
    ClosedWorldError,
    CommError,
    DeriveError,
    NotWorthItError,
    ParallelError,
    PlanError,
    PreflightError,
    RefusedModelError,
    SplitError,
    UncutAttentionError,
    UnknownModelError,
)
from ray_parallel.sequence._attention import Kind, Mesh
from ray_parallel.sequence._auto import Prediction, auto, predict
from ray_parallel.sequence._canary import canary
from ray_parallel.sequence._cfg import batch_split, cfg_split
from ray_parallel.sequence._comm import Comm, GroupComm, Traffic
from ray_parallel.sequence._cost import Link, Workload, forward_bytes, joining_bytes
from ray_parallel.sequence._data import data_split
from ray_parallel.sequence._engine import Parallel
from ray_parallel.sequence._layout import Layout
from ray_parallel.sequence._parallelize import injection, parallelize
from ray_parallel.sequence._plan import (
    Attn,
    Compressed,
    Control,
    Grid,
    Opaque,
    Plan,
    Ranges,
    Region,
    Rows,
    Seq,
)
from ray_parallel.sequence._planfile import Derived, check_plan, derive_plan
from ray_parallel.sequence._probe import Probe
from ray_parallel.sequence._registry import Entry, find, name_of, signature_of
from ray_parallel.sequence._rules import MaskKernel
from ray_parallel.sequence._team import ThreadTeam, run_threads
from ray_parallel.sequence._threads import ThreadComm
from ray_parallel.sequence._timestep import process_usp_timestep

__all__ = [
    "Attn",
    "CanaryError",
    "ChangedModelError",
    "ClosedWorldError",
    "Comm",
    "CommError",
    "Compressed",
    "Control",
    "DeriveError",
    "Derived",
    "Entry",
    "Grid",
    "GroupComm",
    "Kind",
    "Layout",
    "Link",
    "MaskKernel",
    "Mesh",
    "NotWorthItError",
    "Opaque",
    "Parallel",
    "ParallelError",
    "Plan",
    "PlanError",
    "Prediction",
    "PreflightError",
    "Probe",
    "Ranges",
    "RefusedModelError",
    "Region",
    "Rows",
    "Seq",
    "SplitError",
    "ThreadComm",
    "ThreadTeam",
    "Traffic",
    "UncutAttentionError",
    "UnknownModelError",
    "Workload",
    "auto",
    "batch_split",
    "canary",
    "cfg_split",
    "check_plan",
    "data_split",
    "derive_plan",
    "find",
    "forward_bytes",
    "injection",
    "joining_bytes",
    "name_of",
    "parallelize",
    "predict",
    "process_usp_timestep",
    "run_threads",
    "signature_of",
]
