"""Placed models are sampled without the host's compiler of allocations, by a stand-in for the compiler's switches."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host"]
pytestmark = pytest.mark.host

SPEC = "npu:0,1mb;npu:1,1mb;cpu,*"
SWITCH = "disable_comfy_compiler"


@pytest.fixture
def flags(host: Host, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The start flags of a host that has the compiler, and has it on."""
    found: argparse.Namespace = host.module("comfy.cli_args").args
    monkeypatch.setattr(found, SWITCH, False, raising=False)
    host_compiler()._say_once.cache_clear()
    return found


def host_compiler() -> Any:
    from comfy_nodes.host.app import _compiler

    return _compiler


def watched(model: Any, flags: argparse.Namespace, raises: BaseException | None = None) -> list[tuple[bool, Any]]:
    """What the compiler would read at each forward of a model: the process's flag, and the model's own option."""
    seen: list[tuple[bool, Any]] = []

    def apply(apply_model: Any, arguments: dict[str, Any]) -> Any:
        options = arguments["c"].get("transformer_options", {})
        seen.append((getattr(flags, SWITCH), options.get(SWITCH)))
        if raises is not None:
            raise raises
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(apply)
    return seen


def test_a_placed_model_is_sampled_without_it(
    host: Host, flags: argparse.Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    expected = host.sample(host.stock(host.diffusion()))
    host.free_all()
    model = adapter.load_diffusion_model(host.diffusion(), request(SPEC)).value
    seen = watched(model, flags)
    with caplog.at_level(logging.INFO, "comfy_nodes"):
        assert torch.equal(host.sample(model), expected)
        assert torch.equal(host.sample(model.clone()), expected)
    assert seen
    assert set(seen) == {(True, True)}
    assert getattr(flags, SWITCH) is False
    assert SWITCH not in model.model_options["transformer_options"]
    assert sum("without the host's compiler" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("kind", ["ValueError", "KeyboardInterrupt", "the host's interrupt"])
def test_the_switches_come_back_whatever_ends_the_sampling(host: Host, flags: argparse.Namespace, kind: str) -> None:
    kinds = {"ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt}
    raised: BaseException = kinds.get(kind, host.management.InterruptProcessingException)()
    model = adapter.load_diffusion_model(host.diffusion(), request(SPEC)).value
    watched(model, flags, raised)
    with pytest.raises(type(raised)):
        host.sample(model)
    raised.__traceback__ = None  # its frames keep tensors on the devices
    assert getattr(flags, SWITCH) is False
    assert SWITCH not in model.model_options["transformer_options"]


def test_a_model_that_is_not_placed_keeps_it(host: Host, flags: argparse.Namespace) -> None:
    model = adapter.load_diffusion_model(host.diffusion(), request(None)).value
    seen = watched(model, flags)
    host.sample(model)
    assert set(seen) == {(False, None)}


def test_a_host_without_it_gets_no_wrapper(host: Host) -> None:
    if host_compiler().has_compiler():
        pytest.skip("this ComfyUI has the compiler")
    model = adapter.load_diffusion_model(host.diffusion(), request(SPEC)).value
    assert not any(model.wrappers.get("outer_sample", {}).values())
