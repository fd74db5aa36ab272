"""A MODEL whose forward several devices compute: the host's own MODEL, with a session around each sampling run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension as extension
import torch

from comfy_nodes.host.app._machine import known_device
from comfy_nodes.host.parallel._request import WITHOUT_WRAPPERS, ParallelRefusedError, ParallelRequest
from comfy_nodes.host.parallel._seam import KEY, install
from comfy_nodes.host.parallel._session import Session
from ray_parallel import ParallelError
from ray_parallel.sequence import name_of
from ray_parallel.sequence.plans import plan_for

COMPILED = "diffusion_model"
CORE_SPLIT = "multigpu"


def parallel_model(patcher: Any, request: ParallelRequest) -> Any:
    """A MODEL like `patcher` whose forward runs on several devices, with the same result.

    Samplers, guiders, LoRA, hooks, caches and previews are the host's own and run once; only the innermost call of the
    diffusion model runs on all devices. Each device holds the whole model, as an ordinary entry of the host's memory
    management, in number formats and placement of the loader that made it.

    Args:
        patcher: the host's MODEL; it is not changed.
        request: devices and kind. The first device takes the place of the MODEL's own.

    Returns:
        the new MODEL.

    Raises:
        ParallelRefusedError: the model's class has no plan, the MODEL is split or compiled already, its loader cannot
            load it again, or the devices are too few, named twice or of unlike kinds.
        UnknownDeviceError: this machine does not have a device.
    """
    devices = _checked_devices(request)
    _check_model(patcher)
    made = patcher.clone()
    if made.load_device != devices[0]:
        raise ParallelRefusedError(
            f"the model computes on {made.load_device} and the first device is {devices[0]}; name {made.load_device} "
            "first, or load the model for the other device"
        )
    made.set_additional_models(KEY, [_copy_on(made, device) for device in devices[1:]])
    running = _Running(request)
    made.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, KEY, running.around_sampling)
    made.add_wrapper_with_key(extension.WrappersMP.PREPARE_SAMPLING, KEY, running.after_preparing)
    install(made, running.forward)
    return made


class _Running:
    """The session of the sampling run that is going on, if one is."""

    def __init__(self, request: ParallelRequest) -> None:
        self._request = request
        self._session: Session | None = None
        self._copies: list[Any] = []

    def forward(self) -> Callable[[Any], Any] | None:
        return None if self._session is None else self._session.forward

    def around_sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        # Nodes behind this one may have cloned and patched the MODEL: the one that is sampled counts.
        patcher = executor.class_obj.model_patcher
        _check_model(patcher, ours=True)
        self._copies = [_matched(patcher, copy) for copy in patcher.get_additional_models_with_key(KEY)]
        patcher.set_additional_models(KEY, self._copies)
        session = self._session = Session([patcher, *self._copies], self._request.kind)
        try:
            return executor(*args, **kwargs)
        finally:
            copies, self._copies, self._session = self._copies, [], None
            try:
                session.close()
            finally:
                for copy in copies:
                    copy.cleanup()

    def after_preparing(self, executor: Any, patcher: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = executor(patcher, *args, **kwargs)
        for copy in self._copies:
            copy.hook_patches = comfy.model_patcher.create_hook_patches_clone(patcher.hook_patches, copy_tuples=True)
            copy.hook_mode = patcher.hook_mode
            copy.pre_run()
        return prepared


def _matched(patcher: Any, copy: Any) -> Any:
    """The MODEL that is sampled, over the weights of another device: with the patches that it has by now."""
    matched = patcher.clone(model_override=copy.get_clone_model_override())
    matched.load_device, matched.hook_backup = copy.load_device, copy.hook_backup
    matched.remove_additional_models(KEY)
    return matched


def _copy_on(patcher: Any, device: torch.device) -> Any:
    try:
        return patcher.deepclone_multigpu(new_load_device=device)
    except RuntimeError as error:
        if patcher.cached_patcher_init is not None:
            raise
        raise ParallelRefusedError(
            "the loader of this model cannot load it once more for another device; use a loader of ComfyUI or Torchspan"
        ) from error


def _check_model(patcher: Any, *, ours: bool = False) -> None:
    """Refuse what would compute something else, or nothing, on the other devices."""
    model = patcher.model.diffusion_model
    name = name_of(model)
    if patcher.get_additional_models_with_key(KEY) and not ours:
        raise ParallelRefusedError("the model is computed by several devices already; use one parallel node")
    if patcher.get_additional_models_with_key(CORE_SPLIT):
        raise ParallelRefusedError(
            "ComfyUI's own multi-GPU node splits this model already; remove it, or the parallel node"
        )
    if COMPILED in patcher.object_patches:
        raise ParallelRefusedError(
            "the model is compiled as a whole, which hides its blocks from the plan; remove the TorchCompile node"
        )
    if name in WITHOUT_WRAPPERS:
        raise ParallelRefusedError(f"{name} does not let other code compute its forward; use a placement instead")
    try:
        plan_for(model)
    except ParallelError as error:
        raise ParallelRefusedError(f"several devices cannot compute this model together: {error}") from error


def _checked_devices(request: ParallelRequest) -> tuple[torch.device, ...]:
    devices = tuple(known_device(name) for name in request.devices)
    if len(devices) < 2:
        raise ParallelRefusedError(f"{len(devices)} devices compute nothing in parallel; name at least two")
    twice = sorted({str(device) for device in devices if devices.count(device) > 1 and device.type != "cpu"})
    if twice:
        raise ParallelRefusedError(f"{', '.join(twice)} is named twice; name each device once")
    kinds = sorted({device.type for device in devices})
    if len(kinds) > 1:
        raise ParallelRefusedError(
            f"devices of unlike kinds ({', '.join(kinds)}) would wait for the slowest; name one kind"
        )
    return devices
