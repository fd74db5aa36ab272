"""A plan for diffusers with one mistake in it never runs, or never past the canary."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from sequence_diffusers import CASES
from sequence_mutations import notices, refusals
from sequence_tiny import first_of_each

ARCHITECTURES = [case.architecture for case in first_of_each(CASES)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_argument_is_refused_by_its_name_when_it_is_forgotten(architecture: str) -> None:
    cases = [case for case in CASES if case.architecture == architecture]
    assert [where for where, refused in refusals(cases).items() if not refused] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_cut_argument_is_noticed_when_it_is_called_whole(architecture: str) -> None:
    cases = [case for case in CASES if case.architecture == architecture]
    assert [where for where, noticed in notices(cases).items() if not noticed] == []
