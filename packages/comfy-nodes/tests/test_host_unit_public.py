"""The face of the host adapter: what it offers, and what it does not import before it is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from alloc_spec import parse
from comfy_nodes import host
from comfy_nodes.host import Loaded, PlacementReport, PlacementRequest


def test_requests_and_errors_need_no_host() -> None:
    code = (
        "import sys; from comfy_nodes import host; host.PlacementRequest(); host.HostError('x');"
        "sys.exit(any(name.split('.')[0] in ('comfy', 'ray', 'nodes') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="load_everything"):
        getattr(host, "load_" + "everything")


def test_a_request_is_placed_by_its_allocation() -> None:
    assert not PlacementRequest(compute_device="cuda:1").is_placed
    assert PlacementRequest(allocation="auto").is_placed
    assert PlacementRequest(allocation=parse("cpu,*")).is_placed


def test_the_text_of_what_was_loaded_is_that_of_all_reports() -> None:
    reports = tuple(PlacementReport(subject=name, text=f"{name} is here") for name in ("model", "VAE"))
    assert Loaded(value=None, reports=reports).text == "model is here\n\nVAE is here"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (host.UnknownDeviceError("cuda:3", ("cuda:0", "cpu")), ("cuda:3", "cuda:0, cpu", "another machine")),
        (host.ModelFileError("a.safetensors", "it is empty", "fetch it again"), ("a.safetensors", "empty", "fetch")),
        (host.PlacementRefusedError("the VAE", "it has no layers", "load it whole"), ("VAE", "no layers", "whole")),
    ],
)
def test_errors_name_the_thing_the_reason_and_the_remedy(error: host.HostError, words: tuple[str, ...]) -> None:
    assert all(word in str(error) for word in words)
    assert isinstance(error, host.HostError)
