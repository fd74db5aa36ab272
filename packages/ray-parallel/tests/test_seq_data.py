"""Data split: latents are shared out with everything that belongs to them, or the batch is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from seq_core_models import random
from torch import Tensor

from ray_parallel.sequence import PreflightError, SplitError, ThreadComm, data_split, run_threads
from ray_parallel.sequence.comfyui._data_split import step_noise


def sample_euler(model: Any, x: Any, sigmas: Any, s_churn: float = 0.0) -> None:
    """Named as the host's."""


def sample_lcm(model: Any, x: Any, sigmas: Any, noise_sampler: Any = None) -> None:
    """Named as the host's."""


def sample_ar_video(model: Any, x: Any, sigmas: Any) -> None:
    """Named as the host's."""


def dpm_adaptive_function(model: Any, x: Any, sigmas: Any) -> None:
    """Named as the host's."""


def ksampler(function: Callable[..., Any], **extra: Any) -> SimpleNamespace:
    return SimpleNamespace(sampler_function=function, extra_options=extra, inpaint_options={})


EULER = ksampler(sample_euler)


class Guider:
    """The part of the host's sampling object that a wrapper sees; each latent is sampled on its own."""

    def __init__(self, conditions: dict[str, Any] | None = None, clones: list[Any] | None = None) -> None:
        self.model_options: dict[str, Any] = {}
        self.conds = conditions or {"positive": [{"cross_attn": random(1, 5, 4)}]}
        self.model_patcher = SimpleNamespace(get_additional_models_with_key=lambda key: clones or [])
        self.seen: dict[str, Any] = {}

    def outer_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        latent_shapes: list[Any] | None = None,
    ) -> Tensor:
        self.seen = {"rows": noise.shape[0], "seed": seed, "shapes": latent_shapes}
        kept = 1.0 if denoise_mask is None else denoise_mask
        return latent_image + kept * (noise * sigmas[0]).sin()


class Executor:
    """What the host hands to a wrapper."""

    def __init__(self, guider: Guider) -> None:
        self.class_obj = guider

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.class_obj.outer_sample(*args, **kwargs)


def sample(
    comm: ThreadComm | None,
    batch: int,
    *,
    guider: Guider | None = None,
    sampler: Any = EULER,
    mask: Tensor | None = None,
    latents: int | None = None,
) -> Tensor:
    guider = guider or Guider()
    arguments = (random(batch, 4, 3, 3), random(latents or batch, 4, 3, 3, seed=2), sampler, torch.ones(3), mask)
    options: dict[str, Any] = {"latent_shapes": [torch.Size((batch, 4, 3, 3))]}
    if comm is None:
        return guider.outer_sample(*arguments, None, False, 7, **options)
    out: Tensor = data_split(comm)(Executor(guider), *arguments, None, False, 7, **options)
    return out


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_rank_gets_every_latent(batch: int, ranks: int) -> None:
    mask = random(batch, 1, 3, 3, seed=5)
    for kept in (None, mask, mask[:1]):
        want = sample(None, batch, mask=kept)
        for out in run_threads(ranks, partial(sample, batch=batch, mask=kept)):
            assert torch.equal(out, want)


def test_each_rank_samples_its_share() -> None:
    guiders = [Guider() for _ in range(3)]
    run_threads(3, lambda comm: sample(comm, 4, guider=guiders[comm.rank]))
    assert [guider.seen["rows"] for guider in guiders] == [2, 1, 1]
    assert [guider.seen["shapes"] for guider in guiders] == [[(rows, 4, 3, 3)] for rows in (2, 1, 1)]
    assert all(guider.seen["seed"] == 7 for guider in guiders)


def test_it_sends_its_own_latents_once() -> None:
    def rank(comm: ThreadComm) -> int:
        sample(comm, 3)
        return comm.traffic.total_bytes

    assert run_threads(2, rank) == [2 * 36 * 4, 36 * 4]


def condition(name: str) -> Any:
    two = torch.ones(2, 3)
    return {
        "text": two,
        "condition object": SimpleNamespace(cond=two),
        "list": [torch.ones(1, 3), two],
        "ControlNet": SimpleNamespace(cond_hint_original=two, previous_controlnet=None),
        "second ControlNet": SimpleNamespace(
            cond_hint_original=torch.ones(1, 3), previous_controlnet=SimpleNamespace(cond_hint_original=two)
        ),
        "vision": {"output": SimpleNamespace(image_embeds=None, last_hidden_state=two)},
        "one number a latent": torch.ones(4),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["text", "condition object", "list", "ControlNet", "second ControlNet", "vision", "one number a latent"],
)
def test_conditions_of_single_latents_are_refused(name: str) -> None:
    guider = Guider({"positive": [{"cross_attn": random(1, 5, 4)}], "negative": [{"it": condition(name)}]})
    with pytest.raises(SplitError, match=r"negative has a tensor of shape .* of the 4"):
        run_threads(2, lambda comm: sample(comm, 4, guider=guider))
    assert torch.equal(run_threads(1, lambda comm: sample(comm, 4, guider=guider))[0], sample(None, 4))


def test_conditions_for_all_latents_pass() -> None:
    listed = {"a": torch.ones(1, 7), "sizes": torch.ones(3), "area": (4, 4, 0, 0), "id": object(), "none": None}
    out = run_threads(2, lambda comm: sample(comm, 4, guider=Guider({"positive": [listed]})))
    assert torch.equal(out[0], sample(None, 4))


def test_the_hosts_own_split_is_refused() -> None:
    with pytest.raises(SplitError, match="multigpu node"):
        run_threads(2, lambda comm: sample(comm, 4, guider=Guider(clones=["clone"])))


def test_ranks_with_other_batches_are_stopped() -> None:
    with pytest.raises(PreflightError):
        run_threads(2, lambda comm: sample(comm, 4 + comm.rank))


@pytest.mark.parametrize(
    ("sampler", "masked", "reason"),
    [
        (EULER, False, None),
        (EULER, True, None),
        (ksampler(sample_euler, s_churn=0.0), False, None),
        (ksampler(sample_euler, s_churn=0.5), False, "euler with s_churn draws noise at every step"),
        (ksampler(sample_lcm), False, "lcm may draw noise at every step"),
        (ksampler(sample_ar_video), False, "ar_video draws noise at every step"),
        (ksampler(dpm_adaptive_function), False, "dpm_adaptive_function chooses its steps"),
        (SimpleNamespace(sampler="?"), False, "SimpleNamespace is unknown here"),
    ],
)
def test_samplers_with_noise_of_their_own_are_known(sampler: Any, masked: bool, reason: str | None) -> None:
    found = step_noise(sampler, masked)
    assert found == reason if found is None or reason is None else found.startswith(reason)


def test_random_inpainting_draws_noise_only_with_a_mask() -> None:
    sampler = ksampler(sample_euler)
    sampler.inpaint_options = {"random": True}
    assert step_noise(sampler, masked=False) is None
    assert step_noise(sampler, masked=True) == "euler draws new noise for the part outside of the mask"


def test_a_sampler_with_noise_of_its_own_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="lcm may draw noise at every step.*other pictures"):
        run_threads(2, lambda comm: sample(comm, 4, sampler=ksampler(sample_lcm)))


@pytest.mark.parametrize(("batch", "sampler"), [(1, ksampler(sample_lcm)), (4, EULER)])
def test_nothing_is_said_where_nothing_differs(batch: int, sampler: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_threads(2, lambda comm: sample(comm, batch, sampler=sampler))
