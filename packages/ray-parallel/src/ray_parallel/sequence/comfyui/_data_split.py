"""Data split for ComfyUI: every rank samples its share of a batch of latents."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ray_parallel.sequence.comfyui._cfg_split import SplitError, Wrapper, join_rows, refuse_clones, share
from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.ranks._layout import cuts
from ray_parallel.sequence.ranks._preflight import preflight

_TENSORS_OF_OBJECTS = (
    "cond",
    "cond_hint_original",
    "extra_concat_orig",
    "previous_controlnet",
    "image_embeds",
    "last_hidden_state",
    "penultimate_hidden_states",
)
"""Where the host's condition, ControlNet and vision objects keep what may belong to single latents."""

_WHOLE_BATCH_SAMPLERS = {
    "sample_ar_video": "draws noise at every step",
    "dpm_adaptive_function": "chooses its steps from the error of the whole batch",
}


def data_split(comm: Comm) -> Wrapper:
    """An `OUTER_SAMPLE` wrapper for ComfyUI: each rank samples some latents of the batch, and all get every one.

    The noise of the whole batch exists before, so a latent has the same noise wherever it is sampled. Samplers that
    draw more noise at each step draw it for the latents of one rank: the result is another one then, and a
    `UserWarning` says so. With fewer latents than ranks the last ones only receive.

    Args:
        comm: the ranks; each holds a separate model.

    Returns:
        the wrapper, for `patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, wrapper)`. It raises `SplitError`
        when conditions belong to single latents of the batch or when the host's own multigpu clones are in use, and
        `PreflightError` when the ranks disagree.
    """

    def wrapper(
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        guider, batch = executor.class_obj, noise.shape[0]
        refuse_clones(guider.model_options)
        refuse_clones({"multigpu_clones": guider.model_patcher.get_additional_models_with_key("multigpu")})
        if comm.size == 1 or batch == 1:
            alone: Tensor = executor(noise, latent_image, sampler, sigmas, denoise_mask, *rest, **options)
            return alone
        _refuse_single_conditions(guider.conds, batch)
        preflight(comm, "data", noise, latent_image, sigmas, denoise_mask)
        _warn_of_step_noise(sampler, denoise_mask is not None)
        spans = cuts(batch, comm.size)
        start, end = share(spans, comm.rank)
        if options.get("latent_shapes") is not None:
            options["latent_shapes"] = [torch.Size((end - start, *shape[1:])) for shape in options["latent_shapes"]]
        mine = [
            tensor[start:end] if tensor is not None and tensor.shape[0] == batch else tensor
            for tensor in (noise, latent_image, denoise_mask)
        ]
        return join_rows(executor(*mine[:2], sampler, sigmas, mine[2], *rest, **options), spans, comm)

    return wrapper


def _warn_of_step_noise(sampler: Any, masked: bool) -> None:
    reason = step_noise(sampler, masked)
    if reason is not None:
        warnings.warn(
            f"{reason}, so a batch that is split gives other pictures than one that is not; "
            "use a sampler that adds no noise (euler, dpmpp_2m, uni_pc) for the same ones",
            stacklevel=3,
        )


def step_noise(sampler: Any, masked: bool) -> str | None:
    """Why the result of a sampler of the host depends on how the batch is split; None when it does not.

    Args:
        sampler: the host's sampler object.
        masked: only a part of the latents is sampled (inpainting).
    """
    function = getattr(sampler, "sampler_function", None)
    if function is None:
        return None if type(sampler).__name__ == "UNIPC" else f"{type(sampler).__name__} is unknown here"
    name = function.__name__.removeprefix("sample_")
    if function.__name__ in _WHOLE_BATCH_SAMPLERS:
        return f"{name} {_WHOLE_BATCH_SAMPLERS[function.__name__]}"
    if "noise_sampler" in inspect.signature(function).parameters:
        return f"{name} may draw noise at every step"
    if sampler.extra_options.get("s_churn", 0) > 0:
        return f"{name} with s_churn draws noise at every step"
    if masked and sampler.inpaint_options.get("random"):
        return f"{name} draws new noise for the part outside of the mask"
    return None


def _refuse_single_conditions(conditions: Mapping[str, Any], batch: int) -> None:
    """The host repeats conditions over the batch it is given; a share of it would begin at the first one again."""
    for name, listed in conditions.items():
        for tensor in _tensors(listed):
            if (tensor.ndim > 1 and tensor.shape[0] > 1) or (tensor.ndim == 1 and tensor.shape[0] == batch):
                raise SplitError(
                    f"{name} has a tensor of shape {tuple(tensor.shape)}, which belongs to single latents of the "
                    f"{batch}; such a batch is not split by data: use one condition for all, or split by CFG"
                )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    else:
        for name in _TENSORS_OF_OBJECTS:
            yield from _tensors(vars(value).get(name)) if hasattr(value, "__dict__") else ()
