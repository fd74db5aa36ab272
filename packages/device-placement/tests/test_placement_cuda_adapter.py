"""The CUDA adapter where there is no CUDA, and the probe where there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from device_placement import DeviceUnavailableError, diagnose, probe
from device_placement.machine import _cuda

DEVICE = torch.device("cuda:0")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RuntimeError | None]]:
    """What the next launches of the smallest kernel answer; the test is over when all were asked."""
    answers: list[RuntimeError | None] = []

    def launch(device: torch.device) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(_cuda, "_launch", launch)
    yield answers
    assert answers == []


def test_a_clean_device_is_asked_once(launches: list[RuntimeError | None]) -> None:
    launches += [None]
    _cuda.clear_error(DEVICE)


def test_an_error_left_behind_is_taken_by_the_first_launch(launches: list[RuntimeError | None]) -> None:
    launches += [RuntimeError("CUDA error: out of memory"), None]
    _cuda.clear_error(DEVICE)


def test_a_device_that_stays_broken_is_said_to_be(launches: list[RuntimeError | None]) -> None:
    launches += [RuntimeError("unspecified launch failure"), RuntimeError("unspecified launch failure\nmore")]
    with pytest.raises(DeviceUnavailableError, match="unspecified launch failure; the process must be restarted"):
        _cuda.clear_error(DEVICE)


def test_torch_says_in_one_line_why_it_does_not_start_or_starts() -> None:
    reason = _cuda.unavailable_reason()
    assert (reason is None) == torch.cuda.is_available()
    assert reason is None or (reason and "\n" not in reason)


@pytest.mark.gpu
def test_a_real_card_has_memory_a_name_and_a_link() -> None:
    hardware = probe("cuda:0", ["cpu"])
    card, link = hardware.device("cuda:0"), hardware.link("cpu", "cuda:0")
    assert card.label and 0 < card.free_bytes <= card.total_bytes
    assert 1 < link.gb_per_second < 1000
    assert 0 < link.latency_seconds < 1e-3
    assert any("cuda:0" in finding.message for finding in diagnose() if finding.subject == "devices")


@pytest.mark.gpu
def test_every_pair_of_real_cards_is_checked() -> None:
    hardware = probe("cuda:0")
    for donor in hardware.donors:
        assert hardware.link(donor, "cuda:0").gb_per_second > 0
