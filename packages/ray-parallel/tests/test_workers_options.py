"""Options of a group that make no sense are refused by name, before anything is started."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ray_parallel.workers import GroupOptions, InvalidRequestError

NO_NUMBER: list[Any] = [float("nan"), float("inf"), True, "5", None, -1, 0, 10**400, Decimal("NaN"), 1j, []]
COUNTS = ("workers", "threads")
DEADLINES = ("start_seconds", "call_seconds", "step_seconds", "cancel_seconds")
TEXTS = ("gpu_indices", "torch_dist_address", "device", "environment")


@pytest.mark.parametrize("name", [*COUNTS, *DEADLINES])
@pytest.mark.parametrize("value", NO_NUMBER, ids=lambda value: repr(value)[:12])
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as refused:
        GroupOptions(**{name: value})
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_whole(name: str) -> None:
    wrong: dict[str, Any] = {name: 1.5}
    with pytest.raises(InvalidRequestError, match="give a whole number"):
        GroupOptions(**wrong)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [float("nan"), True, 5, ["x"], {"x": 1}], ids=repr)
def test_what_is_no_text_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        GroupOptions(**{name: value})
