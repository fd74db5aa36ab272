"""What a node asks of the host: where a model computes, and where its bytes live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from alloc_spec import AllocationSpec
from device_placement import Estimate, Hardware, PlacementPlan, Policy

T = TypeVar("T")

Allocation = AllocationSpec | Literal["auto"] | None
"""A parsed allocation, `"auto"` for the least slowdown, or None for the whole model on the compute device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """Where a model computes and where its bytes live.

    Attributes:
        compute_device: device that runs the forwards, as `available_devices` names it (``"cuda:0"``, ``"cpu"``); None
            leaves the choice to the host, as its own loaders do.
        allocation: which device holds how much of the model. None leaves loading and paging to the host.
        eject_models: free what the plan needs on its devices before loading: other models move to the host's memory,
            as many as it takes and no more.
        policy: how the bytes that stay on the compute device are chosen; see `device_placement.plan`.
        compute_seconds: time of one pass with every weight resident, where it is known: makes the prediction complete.

    >>> from alloc_spec import parse
    >>> PlacementRequest(compute_device="cuda:0", allocation=parse("cuda:0,4gb;cpu,*")).is_placed
    True
    """

    compute_device: str | None = None
    allocation: Allocation = None
    eject_models: bool = False
    policy: Policy = "stripe"
    compute_seconds: float | None = None

    @property
    def is_placed(self) -> bool:
        """Whether anything beyond the choice of the device is asked for."""
        return self.allocation is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementReport:
    """What became of a request, for the log, the node's text output and charts.

    Attributes:
        subject: what was planned (a file name, and the part of a checkpoint).
        plan: home of every layer; None where the host loads the model its own way.
        hardware: the machine as the planner saw it; None with `plan`.
        estimate: the predicted pass; None with `plan`.
        text: the whole report, tables and reasons.
    """

    subject: str
    text: str
    plan: PlacementPlan | None = None
    hardware: Hardware | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[T]):
    """A loaded model as the host's own object, and what was done with it.

    Attributes:
        value: the host's MODEL, CLIP, VAE, CLIP_VISION or CONTROL_NET; a `Checkpoint` for a file with several.
        reports: one for each part that was planned.
    """

    value: T
    reports: tuple[PlacementReport, ...] = ()

    @property
    def text(self) -> str:
        """All reports, one after the other."""
        return "\n\n".join(report.text for report in self.reports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The parts of a checkpoint; None for a part that the file does not have.

    Attributes:
        model: the host's MODEL.
        clip: the host's CLIP.
        vae: the host's VAE.
    """

    model: Any
    clip: Any
    vae: Any
