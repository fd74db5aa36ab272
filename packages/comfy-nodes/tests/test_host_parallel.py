"""One MODEL on several strict devices: the latents of the stock sampler, whatever stands around the model."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, names_of, request, sized, write_model

from comfy_nodes import host as adapter
from comfy_nodes.host import parallel
from comfy_nodes.host.parallel._request import WITHOUT_WRAPPERS

__all__ = ["comfyui", "host", "sized"]
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("sized")]

FORWARD_LIMIT = 2e-6
"""Relative to the largest latent, after two steps: attention over other parts of a sequence rounds differently."""

KEY = "torchspan_parallel"


def stock(host: Host, name: str | None = None) -> Any:
    path = host.diffusion() if name is None else host.models / "diffusion_models" / f"tiny_{name}.safetensors"
    return host.stock(path, dtype=torch.float32)


def over(model: Any, devices: int = 2, **more: Any) -> Any:
    names = tuple(f"npu:{index}" for index in range(devices))
    return parallel.parallel_model(model, parallel.ParallelRequest(devices=names, **more))


def assert_same(
    host: Host, left: Any, right: Any, name: str | None = None, *, cfg: float = 3.0, **sampling: Any
) -> None:
    """The MODEL `left` gives the latents of the stock MODEL `right`."""
    expected = host.sample(right, name, cfg=cfg, **sampling)
    host.free_all()
    actual = host.sample(left, name, cfg=cfg, **sampling)
    assert float((actual - expected).abs().max() / expected.abs().max()) < FORWARD_LIMIT


def once_more(model: Any, change: Callable[[Any], None]) -> Any:
    """What a stock node does: a changed clone."""
    clone = model.clone()
    change(clone)
    return clone


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("kind", ["ulysses", "ring", "all_gather"])
def test_kinds(host: Host, devices: int, kind: str) -> None:
    assert_same(host, over(stock(host), devices, kind=kind), stock(host))


@pytest.mark.parametrize(("name", "cfg"), [("wan", 3.0), ("ltxv", 1.0)])
def test_other_classes(host: Host, name: str, cfg: float) -> None:
    write_model(host, name)
    assert_same(host, over(stock(host, name)), stock(host, name), name, cfg=cfg)


def test_every_device_computes_and_nothing_is_left_when_the_run_is_over(host: Host) -> None:
    model = over(stock(host), 3)
    threads = threading.active_count()
    for _ in range(3):
        host.sample(model)
        assert threading.active_count() == threads
        diffusion = [patcher.model.diffusion_model for patcher in (model, *model.get_additional_models_with_key(KEY))]
        assert all(not block._forward_pre_hooks for each in diffusion for block in each.double_blocks)
    sizes = names_of([loaded.model for loaded in host.management.current_loaded_models])
    assert sorted(sizes) == ["npu:0", "npu:1", "npu:2"] and len(set(sizes.values())) == 1
    assert all(used >= sizes["npu:0"] for used in host.used()[:3])


def test_a_lora_in_front_and_behind(host: Host) -> None:
    plain = host.sample(stock(host), cfg=3.0)
    expected = host.lora(stock(host), 0.8)
    assert not torch.equal(host.sample(expected, cfg=3.0), plain)
    assert_same(host, over(host.lora(stock(host), 0.8)), host.lora(stock(host), 0.8))
    model = over(stock(host))
    assert_same(host, host.lora(model, 0.8), host.lora(stock(host), 0.8))
    assert_same(host, model, stock(host))


def test_a_hooked_lora(host: Host) -> None:
    weights = host.module("comfy.utils").load_torch_file(
        str(host.models / "loras" / f"tiny_{host.name}_lora.safetensors")
    )
    hooks = host.module("comfy.hooks")
    model = over(stock(host))
    assert_same(host, model, stock(host), hooks=hooks.create_hook_lora(weights, 1.0, 0.0))
    assert_same(host, model, stock(host))


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_the_hosts_caches(host: Host, node: str) -> None:
    cached = getattr(host.module("comfy_extras.nodes_easycache"), node)

    def with_cache(model: Any) -> Any:
        return cached.execute(model, 5.0, 0.0, 1.0, False).args[0]

    assert_same(host, with_cache(over(stock(host))), with_cache(stock(host)))


def counted(calls: list[tuple[str, tuple[int, ...]]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A patch with a state, as other packs have them: it does more at each call."""

    def patch(values: dict[str, Any]) -> dict[str, Any]:
        calls.append((threading.current_thread().name, tuple(values["img"].shape)))
        return {**values, "img": values["img"] * (1 + 0.01 * len(calls))}

    return patch


def test_wrappers_of_other_packs_run_once_outside(host: Host) -> None:
    def wrapped(model: Any) -> Any:
        calls: list[int] = []

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return executor(*args, **kwargs) * (1 + 0.01 * len(calls))

        def change(clone: Any) -> None:
            clone.add_wrapper_with_key("diffusion_model", "another pack", wrapper)
            clone.add_wrapper_with_key("apply_model", "another pack", wrapper)

        return once_more(model, change)

    assert_same(host, wrapped(over(stock(host))), wrapped(stock(host)))
    assert_same(host, over(wrapped(stock(host))), wrapped(stock(host)))


def test_functions_of_the_sampler(host: Host) -> None:
    def changed(model: Any) -> Any:
        def change(clone: Any) -> None:
            clone.set_model_sampler_post_cfg_function(lambda values: values["denoised"] * 0.99)
            clone.set_model_unet_function_wrapper(
                lambda forward, values: forward(values["input"], values["timestep"], **values["c"]) * 0.98
            )

        return once_more(model, change)

    assert_same(host, changed(over(stock(host))), changed(stock(host)))


def test_a_patch_with_a_state_runs_once_with_whole_tensors(host: Host) -> None:
    write_model(host, "wan")
    here: list[Any] = []
    there: list[Any] = []
    assert_same(
        host,
        once_more(over(stock(host, "wan")), lambda clone: clone.set_model_patch(counted(there), "double_block")),
        once_more(stock(host, "wan"), lambda clone: clone.set_model_patch(counted(here), "double_block")),
        "wan",
    )
    assert here and there == here


def test_a_patch_that_the_plan_does_not_know_is_refused(host: Host) -> None:
    model = once_more(over(stock(host)), lambda clone: clone.set_model_patch(counted([]), "double_block"))
    with pytest.raises(Exception, match=r"patches\['double_block'\]"):
        host.sample(model)


def test_a_placed_model_is_placed_on_every_device(host: Host) -> None:
    def placed() -> Any:
        return adapter.load_diffusion_model(host.diffusion(), request("npu:0,1mb;npu:2,1mb;cpu,*")).value

    def single() -> Any:
        return host.stock(host.diffusion())

    assert_same(host, over(placed()), single())
    assert_same(host, host.lora(over(placed()), 0.8), host.lora(single(), 0.8))


def test_a_packed_model(host: Host) -> None:
    def packed() -> Any:
        spec = request("npu:0,500kb;npu:2,500kb;cpu,*")
        return adapter.load_gguf_diffusion_model(host.diffusion("packed"), spec).value

    expected = host.sample(packed(), cfg=3.0)
    host.free_all()
    assert float((host.sample(over(packed()), cfg=3.0) - expected).abs().max() / expected.abs().max()) < FORWARD_LIMIT


class Interruption(BaseException):
    """Like the one of the host."""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, Interruption, KeyboardInterrupt])
def test_a_failing_rank_is_the_callers_error_and_the_next_run_works(
    host: Host, rank: int, error: type[BaseException]
) -> None:
    model = over(stock(host))
    expected = host.sample(model)
    ranks = [model, *model.get_additional_models_with_key(KEY)]

    def fail(*_: Any) -> None:
        raise error()

    threads = threading.active_count()
    handle = ranks[rank].model.diffusion_model.single_blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(error):
        host.sample(model)
    handle.remove()
    assert threading.active_count() == threads
    q = torch.randn(1, 2, 5, 4)
    assert torch.nn.functional.scaled_dot_product_attention(q, q, q).shape == q.shape
    gc.collect()
    assert torch.equal(host.sample(model), expected)


def test_the_hosts_interruption_ends_a_run_and_the_next_one_works(host: Host) -> None:
    model = over(stock(host))
    expected = host.sample(model)
    with pytest.raises(host.management.InterruptProcessingException):
        host.sample(model, after_step=lambda _: host.management.interrupt_current_processing())
    assert torch.equal(host.sample(model), expected)


def test_refusals(host: Host) -> None:
    def refused(words: str, model: Any, *devices: str) -> None:
        names = devices or ("npu:0", "npu:1")
        with pytest.raises(parallel.ParallelRefusedError, match=words):
            parallel.parallel_model(model, parallel.ParallelRequest(devices=names))

    model = stock(host)
    refused("name at least two", model, "npu:0")
    refused("npu:1 is named twice", model, "npu:0", "npu:1", "npu:1")
    refused("unlike kinds", model, "npu:0", "cpu")
    refused("computes on npu:0 and the first device is npu:1", model, "npu:1", "npu:0")
    with pytest.raises(adapter.UnknownDeviceError, match="npu:9"):
        parallel.parallel_model(model, parallel.ParallelRequest(devices=("npu:0", "npu:9")))
    refused("one parallel node", over(model))
    compiled = once_more(model, lambda clone: clone.add_object_patch("diffusion_model", clone.model.diffusion_model))
    refused("remove the TorchCompile node", compiled)
    orphan = model.clone()
    orphan.cached_patcher_init = None
    refused("cannot load it once more", orphan)


def test_the_split_of_the_core_is_refused_in_front_and_behind(host: Host) -> None:
    split = pytest.importorskip("comfy_extras.nodes_multigpu").MultiGPUCFGSplitNode
    with pytest.raises(parallel.ParallelRefusedError, match="own multi-GPU node"):
        over(split.execute(stock(host), 2).result[0])
    behind = split.execute(over(stock(host)), 2).result[0]
    with pytest.raises(parallel.ParallelRefusedError, match="own multi-GPU node"):
        host.sample(behind)


def test_every_class_with_a_plan_lets_its_innermost_call_be_taken(host: Host) -> None:
    from ray_parallel.sequence.plans import ENTRIES  # an optional part of the pack

    for entry in (each for each in ENTRIES if each.model.startswith("comfy.")):
        module, _, name = entry.model.rpartition(".")
        bases = [base for base in getattr(host.module(module), name).__mro__ if base.__module__.startswith("comfy.")]
        forward = "".join(inspect.getsource(vars(base)["forward"]) for base in bases if "forward" in vars(base))
        assert ("WrapperExecutor" in forward) == (entry.model not in WITHOUT_WRAPPERS), entry.model
