"""Find the most bytes of a model that fit on the compute device beside the buffers."""

from __future__ import annotations

from dataclasses import dataclass

from device_placement._plan import PlacementPlan, Policy
from device_placement.planning._layout import Layout
from device_placement.planning._request import Request

FIT_STEPS = 12
"""The most that fits is searched to 1/4096 of what is to be decided: some MiB of a large model."""

COARSE_STEPS = 32
"""Amounts that are tried where the least resident does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """Plans for one request, by resident bytes."""

    request: Request
    layout: Layout
    policy: Policy
    slots: int
    warnings: tuple[str, ...]

    def plan(self, resident_bytes: int) -> PlacementPlan:
        """The plan that keeps at most `resident_bytes` of the model on the compute device."""
        wish = self.request.wish
        return PlacementPlan(
            compute=wish.compute,
            donors=wish.donors,
            policy=self.policy,
            slots=self.slots,
            units=self.layout(resident_bytes - self.request.rest_bytes),
            warnings=self.warnings + self.request.warnings,
        )

    def largest_fitting(self) -> PlacementPlan:
        """The plan with the most resident bytes that fits; the one that needs least in all where none does."""
        low, high = self.request.rest_bytes, self.request.resident_bytes
        best = self.plan(high)
        if self.fits(best):
            return best
        best = self.plan(low)
        if not self.fits(best):
            low, high, best = self._somewhere_between(low, high)
        tolerance = (high - low) >> FIT_STEPS
        while high - low > max(1, tolerance):
            middle = (low + high) // 2
            proposal = self.plan(middle)
            if self.fits(proposal):
                low, best = middle, proposal
            else:
                high = middle
        return best

    def _somewhere_between(self, low: int, high: int) -> tuple[int, int, PlacementPlan]:
        """The largest of some amounts that fits and the next larger one: to stream more may take larger slots.

        Where none fits, there is nothing left to search: both amounts are that of the plan that needs least.
        """
        amounts = [low + (high - low) * step // COARSE_STEPS for step in range(COARSE_STEPS + 1)]
        proposals = [self.plan(amount) for amount in amounts]
        for index in reversed(range(COARSE_STEPS)):
            if self.fits(proposals[index]):
                return amounts[index], amounts[index + 1], proposals[index]
        return low, low, min(proposals, key=lambda proposal: proposal.compute_peak_bytes)

    def fits(self, proposal: PlacementPlan) -> bool:
        return proposal.compute_peak_bytes <= self.request.usable_bytes
