"""A plan for ComfyUI with one mistake in it never runs, or never past the canary."""

from __future__ import annotations

import pytest
import sequence_host
from sequence_comfy_image import CASES as IMAGE_CASES
from sequence_comfy_video import CASES as VIDEO_CASES
from sequence_mutations import notices, refusals

CASES = (*IMAGE_CASES, *VIDEO_CASES)

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not sequence_host.found(), reason=sequence_host.MISSING),
]


@pytest.mark.slow
def test_every_argument_is_refused_by_its_name_when_it_is_forgotten() -> None:
    assert [where for where, refused in refusals(CASES).items() if not refused] == []


@pytest.mark.slow
def test_every_cut_argument_is_noticed_when_it_is_called_whole() -> None:
    # The host only ever says "all of the text" there, which means the same for a part of it.
    same = ["Flux, double_blocks: modulation_dims_txt"]
    assert [where for where, noticed in notices(CASES).items() if not noticed] == same
