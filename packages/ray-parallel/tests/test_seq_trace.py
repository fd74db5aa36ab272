"""What is noted of a forward: lengths, forms and attention, however the model attends, and nothing stays on it."""

from __future__ import annotations

from typing import Any

import pytest
import seq_probes
from seq_core_models import Video, filled, random, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence.deriving._probe import block_lists, trace


def test_a_trace_tells_lengths_and_attention() -> None:
    seen = trace(*seq_probes.video(0)).lists["blocks"]
    assert seen.arguments[("x",)] == {("tensor", (1, 11, 24))}
    assert seen.results[()] == {("tensor", (1, 11, 24))}
    assert seen.attention == {"self_attn": {(11, 11)}, "cross_attn": {(11, 5)}}


class Optioned(nn.Module):
    """A model in the manner of ComfyUI: options go to its blocks, which attend as an override says."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OptionedBlock() for _ in range(2))

    def forward(self, x: Tensor, extra: Any, transformer_options: Any = None) -> Tensor:
        for block in self.blocks:
            x = block(x, extra, "text", True, transformer_options=transformer_options)
        return x


class OptionedBlock(nn.Module):
    def forward(self, x: Tensor, extra: Any, *marks: Any, transformer_options: Any) -> Tensor:
        override = transformer_options["optimized_attention_override"]
        found: Tensor = override(attention_of_the_host, x, x, x, 2, transformer_options=transformer_options)
        return found


def attention_of_the_host(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **options: Any) -> Tensor:
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("options", [None, {}, {"patches": {}}])
def test_a_trace_sees_attention_through_the_options_of_the_host(options: Any) -> None:
    arguments = {"x": random(1, 7, 8), "extra": {"scale": 2, "rows": random(1, 3)}, "transformer_options": options}
    seen = trace(Optioned(), arguments).lists["blocks"]
    assert seen.attention == {"": {(7, 7)}}
    assert seen.arguments == {
        ("x",): {("tensor", (1, 7, 8))},
        ("extra", "scale"): {("int", 2)},
        ("extra", "rows"): {("tensor", (1, 3))},
        ("*marks",): {("many", 2)},
        ("*marks", 0): {("other", "str")},
        ("*marks", 1): {("other", "bool")},
    }
    assert arguments["transformer_options"] is options


def test_attention_outside_of_the_blocks_is_nobodys() -> None:
    class Before(Video):
        def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
            out: Tensor = super().forward(nn.functional.scaled_dot_product_attention(x, x, x), *rest, **named)
            return out

    assert trace(filled(Before()), video_inputs()).lists["blocks"].attention.keys() == {"self_attn", "cross_attn"}


def test_a_trace_leaves_nothing_on_the_model() -> None:
    model, arguments = seq_probes.video(0)
    trace(model, arguments)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_only_outermost_lists_of_one_class_count() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(Video() for _ in range(2))
    model.mixed = nn.ModuleList([nn.Linear(2, 2), nn.Identity()])
    assert list(block_lists(model)) == ["blocks"]
