"""The design's table of policies at equal VRAM, reproduced by the shipped planner and predictor."""

from __future__ import annotations

import pytest
from placement_table import CASES, Case, bound_of, seconds_of

# Seconds a pass from the design: contiguous and serial, contiguous with prefetch, interleave, stripe.
DESIGN = [
    (0.857, 0.604, 0.600, 0.600),
    (1.134, 0.705, 0.641, 0.600),
    (1.285, 0.985, 0.771, 0.668),
    (1.261, 1.085, 0.878, 0.641),
    (3.019, 2.452, 1.635, 1.500),
    (3.728, 3.151, 2.140, 2.140),
]
ROWS = list(zip(CASES, DESIGN, strict=True))


@pytest.mark.parametrize(("case", "design"), ROWS)
def test_contiguous_and_serial_is_what_the_design_says(case: Case, design: tuple[float, ...]) -> None:
    """Within 2 %: the design moves whole blocks, the planner whole tensors, which is a little less."""
    assert seconds_of(case, "contiguous", slots=1, overlap=False) == pytest.approx(design[0], rel=0.02)


@pytest.mark.parametrize(("case", "design"), ROWS)
def test_contiguous_with_prefetch_is_what_the_design_says(case: Case, design: tuple[float, ...]) -> None:
    assert seconds_of(case, "contiguous") == pytest.approx(design[1], rel=0.002)


@pytest.mark.parametrize(("case", "design"), ROWS)
def test_interleave_is_what_the_design_says(case: Case, design: tuple[float, ...]) -> None:
    """Within 6 %: the two error diffusions meet other blocks of Flux, whose sizes differ by a factor of 2.4."""
    assert seconds_of(case, "interleave") == pytest.approx(design[2], rel=0.06)


@pytest.mark.parametrize(("case", "design"), ROWS)
def test_stripe_is_what_the_design_says(case: Case, design: tuple[float, ...]) -> None:
    """Within 3.5 %: the design cuts blocks anywhere, the planner between tensors."""
    assert seconds_of(case, "stripe") == pytest.approx(design[3], rel=0.035)


@pytest.mark.parametrize("case", CASES)
def test_each_idea_is_worth_something_and_none_beats_the_bound(case: Case) -> None:
    serial = seconds_of(case, "contiguous", slots=1, overlap=False)
    prefetch, interleave, stripe = (seconds_of(case, policy) for policy in ("contiguous", "interleave", "stripe"))
    assert serial > prefetch >= interleave * 0.995 >= stripe * 0.99
    assert stripe >= bound_of(case) * (1 - 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_stripe_is_within_nine_percent_of_the_bound(case: Case) -> None:
    assert seconds_of(case, "stripe") <= 1.09 * bound_of(case)


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[5]])
def test_the_ancestors_placement_costs_what_the_design_says(case: Case) -> None:
    """Whole blocks in the alphabetical order of devices, fetched one at a time."""
    design = DESIGN[CASES.index(case)][0]
    assert seconds_of(case, "legacy_tail", slots=1, overlap=False) == pytest.approx(design, rel=0.005)
