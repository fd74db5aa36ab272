from __future__ import annotations

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_loader import GgufKeyError
from gguf_loader.text._components import _T5_GATED, COMPONENTS, TextComponent
from gguf_loader.text._key_map import KeyMap, with_suffixes
from gguf_loader.text._vision import VISION_COMPONENTS

MAP = KeyMap(
    {"blk.{n}.attn_q.weight": "layers.{n}.q.weight", "blk.0.special.weight": "special", "token_embd.weight": "embed"},
    derived=frozenset({"rope_freqs.weight", "blk.{n}.attn_rot_embd.weight"}),
)


@given(number=st.integers(0, 10_000))
def test_a_number_is_carried_over(number: int) -> None:
    assert MAP.target(f"blk.{number}.attn_q.weight") == f"layers.{number}.q.weight"


@given(junk=st.text(min_size=1, max_size=8))
def test_a_name_with_anything_added_is_another_name(junk: str) -> None:
    for name in ("blk.3.attn_q.weight", "token_embd.weight"):
        assert MAP.target(junk + name) is None
        assert MAP.target(name + junk) is None


def test_a_rule_for_one_number_goes_before_the_rule_for_all() -> None:
    assert MAP.target("blk.0.special.weight") == "special"
    assert MAP.target("blk.1.special.weight") is None


def test_renaming_reports_what_it_does_not_know_and_passes_over_what_is_derived() -> None:
    renamed = MAP.rename(["token_embd.weight", "what", "rope_freqs.weight", "blk.7.attn_rot_embd.weight"], "f.gguf")
    assert renamed.sources == {"embed": "token_embd.weight"}
    assert renamed.unmapped == ("what",)


def test_two_names_of_one_target_are_refused() -> None:
    twice = KeyMap({"a": "x", "b": "x"})
    with pytest.raises(GgufKeyError, match=r"f.gguf: tensor 'b': has the same target as 'a': 'x'"):
        twice.rename(["a", "b"], "f.gguf")


def test_suffixes_and_prefixes_are_put_on_both_sides() -> None:
    assert with_suffixes({"a": "b"}, "blk.{n}.", "layers.{n}.") == {
        "blk.{n}.a.weight": "layers.{n}.b.weight",
        "blk.{n}.a.bias": "layers.{n}.b.bias",
    }


@pytest.mark.parametrize("component", [*COMPONENTS.values(), _T5_GATED], ids=lambda component: component.name)
def test_no_table_sends_two_names_to_one_target(component: TextComponent) -> None:
    targets = list(component.key_map.names.values())
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("name", VISION_COMPONENTS)
def test_no_vision_table_sends_two_names_to_one_target(name: str) -> None:
    targets = list(VISION_COMPONENTS[name].key_map.names.values())
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("architecture", ["t5encoder", "t5", *COMPONENTS])
def test_every_tensor_that_an_architecture_can_have_has_a_name(architecture: str) -> None:
    """The list of the gguf package; experts are for mixtures, which no diffusion model has as its text encoder."""
    kind = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    key_map = _T5_GATED.key_map if architecture.startswith("t5") else COMPONENTS[architecture].key_map
    mixture = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp", "cross_attn_rel_b"}
    for tensor in gguf.MODEL_TENSORS[kind]:
        stem = gguf.TENSOR_NAMES[tensor].replace("{bid}", "5")
        if architecture != "gemma4" and stem.split(".")[-1] in mixture:
            continue
        name = f"{stem}.weight"
        assert key_map.target(name) or key_map.is_derived(name), name
