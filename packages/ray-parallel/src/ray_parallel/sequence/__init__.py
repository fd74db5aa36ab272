"""Sequence parallelism for unmodified models: plans as data, exact attention over cut token streams.

Needs torch.distributed only.

May import: _errors.
"""

from ray_parallel._errors import ParallelError
from ray_parallel.sequence.comfyui._cfg_split import SplitError, batch_split, cfg_split
from ray_parallel.sequence.comfyui._data_split import data_split
from ray_parallel.sequence.comfyui._timestep import process_usp_timestep
from ray_parallel.sequence.deriving._derive import DeriveError
from ray_parallel.sequence.deriving._planfile import Derived, check_plan, derive_plan
from ray_parallel.sequence.deriving._probe import Probe
from ray_parallel.sequence.plan._errors import ClosedWorldError, PlanError
from ray_parallel.sequence.plan._kernels import MaskKernel
from ray_parallel.sequence.plan._plan import Attn, Compressed, Control, Grid, Opaque, Plan, Ranges, Region, Rows, Seq
from ray_parallel.sequence.plan._registry import (
    ChangedModelError,
    Entry,
    RefusedModelError,
    UnknownModelError,
    find,
    name_of,
    signature_of,
)
from ray_parallel.sequence.predicting._choice import NotWorthItError, Prediction, auto, predict
from ray_parallel.sequence.predicting._cost import Link, Workload, forward_bytes, joining_bytes
from ray_parallel.sequence.ranks._comm import Comm, CommError, GroupComm, Traffic
from ray_parallel.sequence.ranks._layout import Layout
from ray_parallel.sequence.ranks._preflight import PreflightError
from ray_parallel.sequence.ranks._team import ThreadTeam, run_threads
from ray_parallel.sequence.ranks._threads import ThreadComm
from ray_parallel.sequence.running._attention import Kind, Mesh
from ray_parallel.sequence.running._canary import CanaryError, canary
from ray_parallel.sequence.running._engine import Parallel
from ray_parallel.sequence.running._parallelize import injection, parallelize
from ray_parallel.sequence.running._rules import UncutAttentionError

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
