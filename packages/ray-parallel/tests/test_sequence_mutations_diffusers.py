"""A plan for diffusers with one mistake in it never runs, or never past the canary."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from sequence_diffusers import CASES
from sequence_mutations import notices, refusals


def test_every_argument_is_refused_by_its_name_when_it_is_forgotten() -> None:
    assert [where for where, refused in refusals(CASES).items() if not refused] == []


def test_every_cut_argument_is_noticed_when_it_is_called_whole() -> None:
    assert [where for where, noticed in notices(CASES).items() if not noticed] == []
