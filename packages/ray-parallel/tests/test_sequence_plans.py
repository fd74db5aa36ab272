"""The known plans as data: short, distinct, and refused for anything that they were not written for."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import sequence_host
import torch
from sequence_cases import ON_COMFYUI, ON_DIFFUSERS
from torch import nn

from ray_parallel.sequence import ChangedModelError, Entry, Plan, RefusedModelError, UnknownModelError, find, plans
from ray_parallel.sequence.plans import ENTRIES, REFUSED, plan_for
from ray_parallel.sequence.plans._comfyui import guided

FOLDER = Path(plans.__file__).parent
MAX_LINES = 20


def assigned_plans() -> Iterator[tuple[str, int]]:
    """Every plan that is written down, with its lines."""
    for path in sorted(FOLDER.glob("_[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                called = node.value.func
                if isinstance(called, ast.Name) and called.id in ("Plan", "Region"):
                    yield f"{path.stem}.{ast.unparse(node.targets[0])}", node.end_lineno - node.lineno + 1  # type: ignore[operator]


@pytest.mark.parametrize(("name", "lines"), list(assigned_plans()))
def test_a_plan_is_short(name: str, lines: int) -> None:
    assert lines < MAX_LINES


def test_plans_are_found_by_the_reader_above() -> None:
    assert {name for name, _ in assigned_plans()} >= {"_comfyui.LTXAV", "_comfyui.SD3", "_diffusers.FLUX"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.model.rpartition(".")[2])
def test_a_plan_is_pure_data(entry: Entry) -> None:
    assert Plan.from_json(entry.plan.to_json()) == entry.plan


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.model.rpartition(".")[2])
def test_a_plan_speaks_of_parameters_only(entry: Entry) -> None:
    sharing = [other for other in ENTRIES if other.plan == entry.plan]
    for region in entry.plan.regions:
        parameters = {name for other in sharing for listed in region.blocks for name in other.blocks[listed]}
        opaque = any(name.startswith("**") for name in parameters)
        unknown = {*region.args, *region.whole} - parameters
        assert not unknown or opaque, unknown


def test_no_two_entries_are_for_the_same_blocks() -> None:
    seen = {(entry.model, tuple(sorted(entry.blocks.items()))) for entry in ENTRIES}
    assert len(seen) == len(ENTRIES)


def test_no_model_is_both_known_and_refused() -> None:
    assert not {entry.model for entry in ENTRIES} & set(REFUSED)


@pytest.mark.parametrize(
    ("host", "named_in"),
    [
        pytest.param("diffusers.", importlib.import_module, id="diffusers", marks=ON_DIFFUSERS),
        pytest.param("comfy.", sequence_host.host, id="comfyui", marks=ON_COMFYUI),
    ],
)
def test_every_known_and_every_refused_class_is_there(host: str, named_in: Callable[[str], Any]) -> None:
    names = [name for name in [*(entry.model for entry in ENTRIES), *REFUSED] if name.startswith(host)]
    assert len(names) > 5
    for name in names:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(named_in(module), kind), nn.Module)


def named(model: str, **members: Any) -> nn.Module:
    """A module whose class has this full name."""
    package, _, name = model.rpartition(".")
    made: nn.Module = type(name, (nn.Module,), {"__module__": package, "__qualname__": name, **members})()
    return made


@pytest.mark.parametrize("model", REFUSED)
def test_a_refused_model_says_why(model: str) -> None:
    with pytest.raises(RefusedModelError, match=REFUSED[model]) as refused:
        plan_for(named(model))
    assert refused.value.reason == REFUSED[model]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModelError, match=r"torch.nn.modules.linear.Linear; known are: comfy\.ldm"):
        plan_for(nn.Linear(2, 2))


def test_a_subclass_of_a_known_model_is_unknown() -> None:
    with pytest.raises(UnknownModelError):
        plan_for(named("my.WanModel"))


def test_a_known_class_with_other_blocks_is_refused() -> None:
    class Block(nn.Module):
        def forward(self, x: Any, e: Any, freqs: Any, context: Any, something_new: Any) -> Any:
            return x

    model = named("comfy.ldm.wan.model.WanModel")
    model.blocks = nn.ModuleList([Block()])
    with pytest.raises(ChangedModelError, match="something_new"):
        plan_for(model)


def test_an_entry_of_yours_is_found_beside_the_known_ones() -> None:
    wan = next(entry for entry in ENTRIES if entry.model.endswith("wan.model.WanModel"))
    mine = replace(wan, model="my.Model", blocks={"blocks": ("x", "freqs")})

    class Block(nn.Module):
        def forward(self, x: Any, freqs: Any) -> Any:
            return x

    model = named("my.Model")
    model.blocks = nn.ModuleList([Block()])
    assert find(model, [*ENTRIES, mine]) is mine


class GuideMask:
    """What the host calls with: six tokens, of which the last two are guides."""

    guide_start = 4
    tracked_count = 2
    noisy_mask = torch.zeros(1, 1, 1, 6)
    tracked_mask = torch.zeros(1, 1, 2, 6)


@pytest.mark.parametrize(("start", "count"), [(4, 2), (0, 2), (2, 2), (0, 6)])
def test_the_guide_mask_is_applied_by_parts(start: int, count: int) -> None:
    mask = type("Mask", (GuideMask,), {"guide_start": start, "tracked_count": count})()
    mask.noisy_mask = torch.randn(1, 1, 1, 6)
    mask.tracked_mask = torch.randn(1, 1, count, 6)
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    dense = torch.zeros(1, 1, 6, 6)
    dense[:, :, :start] = mask.noisy_mask
    dense[:, :, start : start + count] = mask.tracked_mask
    attend = nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(guided(mask, q, k, v, attend), attend(q, k, v, dense))


def test_what_is_known_cannot_be_changed_by_accident() -> None:
    assert isinstance(REFUSED, MappingProxyType)
    assert isinstance(ENTRIES, tuple)
