"""The public face of ray_parallel.sequence: nothing of it disappears or appears by accident."""

from __future__ import annotations

import inspect

import ray_parallel.sequence as face

NAMES = """
Attn CanaryError ChangedModelError ClosedWorldError Comm CommError Compressed Control DeriveError Derived Entry Grid
GroupComm Kind Layout Link MaskKernel Mesh NotWorthItError Opaque Parallel ParallelError Plan PlanError Prediction
PreflightError Probe Ranges RefusedModelError Region Rows Seq SplitError ThreadComm ThreadTeam Traffic
UncutAttentionError UnknownModelError Workload auto batch_split canary cfg_split check_plan data_split derive_plan
find forward_bytes injection joining_bytes name_of parallelize predict process_usp_timestep run_threads signature_of
"""
FACE = NAMES.split()


def test_the_names_are_frozen() -> None:
    assert face.__all__ == FACE


def test_every_name_explains_itself() -> None:
    for name in FACE:
        value = getattr(face, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_every_error_is_of_one_tree() -> None:
    for name in FACE:
        if name.endswith("Error"):
            assert issubclass(getattr(face, name), face.ParallelError), name
