"""What a placement is predicted to cost, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from device_placement import _serial

Bound = Literal["compute", "link", "buffer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that takes time in one steady pass.

    Attributes:
        kind: ``"compute"`` (a unit's forward) or ``"copy"`` (its streamed bytes on their way).
        device: the compute device for a forward, the donor for a copy.
        unit: path of the unit.
        start_seconds: since the pass began; what began before, in the pass before, is cut off at 0.
        end_seconds: since the pass began; what goes on in the next pass is cut off at the end of this one.
    """

    kind: Literal["compute", "copy"]
    device: str
    unit: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One steady forward pass of a placed model, as `predict` sees it.

    Attributes:
        compute: device that runs the forwards.
        seconds: duration of a pass; None when the compute time is not known.
        compute_seconds: C, the same pass with every weight resident; None when not known.
        transfer_seconds: D, the busiest ingress of the compute device: what a pass cannot beat however good the
            overlap.
        bound: what `seconds` is made of. ``"compute"`` and ``"link"``: C or D within 1 %; ``"buffer"``: neither, the
            slots are too few or the streamed shares too uneven to keep either busy. None when `seconds` is.
        peak_bytes: most bytes of weights at any time, by device; on the compute device with all slots.
        spans: every copy and forward of one steady pass, for `render_timeline_svg`; empty when `seconds` is None.
    """

    compute: str
    seconds: float | None
    compute_seconds: float | None
    transfer_seconds: float
    bound: Bound | None
    peak_bytes: Mapping[str, int]
    spans: tuple[Span, ...] = ()

    @property
    def slowdown(self) -> float | None:
        """Pass time over the pass time with every weight resident; None when either is not known or takes no time."""
        if self.seconds is None or not self.compute_seconds:
            return None
        return self.seconds / self.compute_seconds

    @property
    def efficiency(self) -> float | None:
        """``max(C, D) / seconds``: 1 is perfect overlap; None when `seconds` is None or nothing takes time."""
        if not self.seconds or self.compute_seconds is None:
            return None
        return max(self.compute_seconds, self.transfer_seconds) / self.seconds

    def to_json(self, *, indent: int | None = None) -> str:
        """The estimate as JSON text, to be stored and read by `from_json`."""
        return _serial.dumps("estimate", self, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Estimate:
        """Inverse of `to_json`.

        Raises:
            InvalidJsonError: the text is not what `to_json` writes.
        """
        return _serial.loads("estimate", cls, text)
