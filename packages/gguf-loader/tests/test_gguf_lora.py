"""Low-rank adapters: the same as patched weights, and the weights untouched."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from gguf_packing import packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gguf_loader import GgufPackedError, GgufTypeError, PackedTensor, dequantize, type_by_name
from gguf_loader._errors import GgufLoraError
from gguf_loader.packed._config import DequantConfig
from gguf_loader.packed._layers import GgufLinear
from gguf_loader.packed._load import load_packed
from gguf_loader.packed._lora import add_lora, lora_from_state_dict, lora_strengths, remove_lora, set_lora_strength
from gguf_loader.packed._low_rank import LowRank, LowRankTerms


class Two(nn.Module):
    """A packed layer and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 64, device="meta")
        self.second = nn.Linear(64, 32, device="meta")
        state: dict[str, Tensor] = {"first.weight": packed("Q4_K", 64, 256), "first.bias": torch.ones(64)}
        generator = torch.Generator().manual_seed(5)
        state |= {"second.weight": torch.randn(32, 64, generator=generator) / 8, "second.bias": torch.zeros(32)}
        load_packed(self, state)
        assert isinstance(self.first, GgufLinear)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x))
        return found

    @property
    def blocks(self) -> Tensor:
        assert isinstance(self.first, GgufLinear)
        return self.first.packed_weight.packed


def adapter(inputs: int, outputs: int, rank: int = 4, seed: int = 0, alpha: float | None = None) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    return LowRank(down=down / 16, up=up / 2, alpha=alpha)


def for_both(seed: int = 0, rank: int = 4) -> dict[str, LowRank]:
    return {"first": adapter(256, 64, rank, seed), "second": adapter(64, 32, rank, seed + 100)}


def patched(model: Two, added: dict[str, tuple[dict[str, LowRank], float]], x: Tensor) -> Tensor:
    """What the model computes if the adapters are added to dense weights."""
    assert isinstance(model.first, GgufLinear)
    weights = {"first": model.first.packed_weight.dequantize(), "second": model.second.weight.detach()}
    for adapters, strength in added.values():
        for name, one in adapters.items():
            weights[name] = weights[name] + strength * one.scale * (one.up @ one.down)
    x = nn.functional.linear(x, weights["first"], model.first.bias)
    return nn.functional.linear(x, weights["second"], model.second.bias)


X = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(11))


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.integers(1, 9), st.floats(-2, 2), st.integers(0, 99)), max_size=4
    )
)
@settings(max_examples=20, deadline=None)
def test_any_number_of_adapters_equal_patched_weights(drawn: dict[str, tuple[int, float, int]]) -> None:
    model = Two()
    added = {name: (for_both(seed, rank), strength) for name, (rank, strength, seed) in drawn.items()}
    for name, (adapters, strength) in added.items():
        add_lora(model, name, adapters, strength=strength)
    assert torch.allclose(model(X), patched(model, added, X), rtol=1e-3, atol=1e-3)
    assert lora_strengths(model) == {name: strength for name, (_, strength) in added.items()}


def test_alpha_over_rank_scales_an_adapter() -> None:
    model = Two()
    one = adapter(256, 64, rank=8, alpha=4.0)
    assert one.scale == 0.5
    add_lora(model, "a", {"first": one})
    assert torch.allclose(model(X), patched(model, {"a": ({"first": one}, 1.0)}, X), rtol=1e-3, atol=1e-3)


def test_a_strength_changes_without_touching_a_weight() -> None:
    model, adapters = Two(), for_both()
    add_lora(model, "a", adapters, strength=0.25)
    before = [model.blocks.clone(), model.second.weight.clone()]
    versions = [model.blocks._version, model.second.weight._version]
    for strength in (1.0, -0.5, 0.0, 0.7):
        set_lora_strength(model, "a", strength)
        assert torch.allclose(model(X), patched(model, {"a": (adapters, strength)}, X), rtol=1e-3, atol=1e-3)
    assert torch.equal(model.blocks, before[0])
    assert torch.equal(model.second.weight, before[1])
    assert versions == [model.blocks._version, model.second.weight._version]


def test_at_strength_zero_the_output_is_bit_for_bit_that_without() -> None:
    model = Two()
    plain = model(X)
    add_lora(model, "a", for_both(), strength=0.0)
    assert torch.equal(model(X), plain)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_removing_one_leaves_the_others(name: str) -> None:
    model = Two()
    added = {key: (for_both(seed, rank=2 + seed), 0.5) for seed, key in enumerate("abc")}
    for key, (adapters, strength) in added.items():
        add_lora(model, key, adapters, strength=strength)
    remove_lora(model, name)
    del added[name]
    assert torch.allclose(model(X), patched(model, added, X), rtol=1e-3, atol=1e-3)
    assert set(lora_strengths(model)) == set(added)


def test_removing_the_last_leaves_no_trace() -> None:
    model = Two()
    plain, modules, keys = model(X), list(model.modules()), list(model.state_dict())
    add_lora(model, "a", for_both())
    assert list(model.state_dict()) == keys
    remove_lora(model, "a")
    assert torch.equal(model(X), plain)
    assert list(model.modules()) == modules
    assert not model.first._forward_hooks


def test_factors_move_with_the_layer() -> None:
    model = Two()
    add_lora(model, "a", for_both())
    model.to("meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


def test_factors_follow_the_activations_where_a_weight_is_streamed() -> None:
    """What streams weights runs a layer on another device than the one that its weight is kept on."""
    terms = LowRankTerms(32, 16, dtype=torch.float32, device=torch.device("cpu"))
    terms.add("style", adapter(32, 16), 1.0)
    output = terms.added_to(torch.empty(2, 16, device="meta"), torch.empty(2, 32, device="meta"))
    assert {tensor.device.type for tensor in (output, *terms.buffers())} == {"meta"}


def test_the_patch_dtype_is_that_of_the_term_alone() -> None:
    layer = nn.Linear(256, 64, bias=False, device="meta", dtype=torch.bfloat16)
    load_packed(layer, {"weight": packed("Q4_K", 64, 256)}, config=DequantConfig(patch_dtype=torch.float32))
    x, one = X.bfloat16(), adapter(256, 64)
    plain = layer(x)
    add_lora(layer, "a", {"": one}, strength=0.3)
    exact = nn.functional.linear(nn.functional.linear(x.float(), one.down) * 0.3, one.up)
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.float32}
    assert torch.equal(layer(x), plain + exact.bfloat16())


def test_without_a_patch_dtype_factors_take_the_weight_s() -> None:
    layer = nn.Linear(256, 64, bias=False, device="meta", dtype=torch.bfloat16)
    load_packed(layer, {"weight": packed("Q4_K", 64, 256)})
    add_lora(layer, "a", {"": adapter(256, 64)}, strength=0.3)
    names = dict(layer.named_buffers())
    assert names["lora_terms.down"].dtype is torch.bfloat16
    assert names["lora_terms.factors"].tolist() == [pytest.approx(0.3, abs=1e-7)] * 4
    assert layer(X.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_adapters_of_its_own(duplicate: object) -> None:
    assert callable(duplicate)
    model = Two()
    plain = model(X)
    add_lora(model, "a", for_both())
    adapted = model(X)
    other = duplicate(model)
    remove_lora(other, "a")
    assert torch.equal(other(X), plain)
    assert not other.first._forward_hooks
    assert torch.equal(model(X), adapted)


def test_gradients_flow_through_the_term() -> None:
    model = Two()
    adapters = for_both()
    add_lora(model, "a", adapters)
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).sum(), x)
    (expected,) = torch.autograd.grad(patched(model, {"a": (adapters, 1.0)}, x).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("adapters", "reason"),
        [
            ({"9": adapter(256, 64)}, "layer '9' is not in the model"),
            ({"": adapter(256, 64)}, "layer '' is a Two"),
            ({"first": adapter(128, 64)}, "maps 128 to 64 features, the layer maps 256 to 64"),
            ({"first": adapter(256, 64), "second": adapter(64, 99)}, "maps 64 to 99 features"),
        ],
    )
    def test_an_adapter_of_another_model_changes_nothing(self, adapters: dict[str, LowRank], reason: str) -> None:
        model = Two()
        with pytest.raises(GgufLoraError, match=reason) as caught:
            add_lora(model, "a", adapters)
        assert caught.value.field in adapters
        assert lora_strengths(model) == {}
        assert len(list(model.modules())) == 3

    def test_a_name_that_is_taken(self) -> None:
        model = Two()
        add_lora(model, "a", for_both())
        with pytest.raises(GgufLoraError, match="'a' is there already"):
            add_lora(model, "a", for_both(1))

    def test_a_name_that_other_layers_have_taken(self) -> None:
        """A name has one strength in the whole model, so that what `lora_strengths` says of it is true."""
        model = Two()
        add_lora(model, "a", {"first": adapter(256, 64)}, strength=0.25)
        with pytest.raises(GgufLoraError, match="adapter 'a' is there already; remove it first"):
            add_lora(model, "a", {"second": adapter(64, 32)}, strength=1.0)
        assert lora_strengths(model) == {"a": 0.25}
        assert not model.second._forward_hooks

    def test_a_name_that_is_not_there(self) -> None:
        model = Two()
        add_lora(model, "a", for_both())
        with pytest.raises(GgufLoraError, match="no adapter 'b'; it has a"):
            remove_lora(model, "b")
        with pytest.raises(GgufLoraError, match="no adapter 'b'; it has a"):
            set_lora_strength(model, "b", 1.0)

    @pytest.mark.parametrize(("down", "up"), [((4, 8), (8, 3)), ((4, 8, 1), (8, 4)), ((4, 8), (4,))])
    def test_factors_that_are_no_pair(self, down: tuple[int, ...], up: tuple[int, ...]) -> None:
        with pytest.raises(GgufLoraError, match="no low-rank pair"):
            LowRank(down=torch.zeros(down), up=torch.zeros(up))

    def test_an_alpha_that_is_no_number(self) -> None:
        with pytest.raises(GgufLoraError, match="alpha is nan"):
            LowRank(down=torch.zeros(4, 8), up=torch.zeros(8, 4), alpha=float("nan"))

    def test_factors_without_a_direction(self) -> None:
        with pytest.raises(GgufLoraError, match=r"shapes \(0, 8\) and \(8, 0\) are no low-rank pair"):
            LowRank(down=torch.zeros(0, 8), up=torch.zeros(8, 0), alpha=1.0)

    @pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
    def test_a_strength_that_is_no_number_changes_nothing(self, strength: float) -> None:
        model = Two()
        with pytest.raises(GgufLoraError, match=f"the strength of adapter 'a' is {strength}; pass a finite number"):
            add_lora(model, "a", for_both(), strength=strength)
        assert lora_strengths(model) == {}
        add_lora(model, "a", for_both(), strength=0.5)
        with pytest.raises(GgufLoraError, match="pass a finite number"):
            set_lora_strength(model, "a", strength)
        assert lora_strengths(model) == {"a": 0.5}

    def test_two_adapters_for_one_layer_of_two_names(self) -> None:
        layer = nn.Linear(8, 8, bias=False)
        model = nn.ModuleDict({"first": layer, "second": layer})
        with pytest.raises(GgufLoraError, match="layer 'second' is layer 'first' under another name"):
            add_lora(model, "a", {"first": adapter(8, 8), "second": adapter(8, 8)})
        assert not layer._forward_hooks


def test_a_layer_of_two_names_goes_by_either() -> None:
    layer = nn.Linear(8, 8, bias=False)
    for name in ("first", "second"):
        add_lora(nn.ModuleDict({"first": layer, "second": layer}), name, {name: adapter(8, 8)})
    assert lora_strengths(layer) == {"first": 1.0, "second": 1.0}


class TestFiles:
    @pytest.mark.parametrize(("down", "up"), [("lora_A", "lora_B"), ("lora_down", "lora_up")])
    def test_pairs_are_found_by_layer(self, down: str, up: str) -> None:
        tensors = {
            f"transformer.first.{down}.weight": torch.ones(4, 256),
            f"transformer.first.{up}.weight": torch.ones(64, 4),
            "transformer.first.alpha": torch.tensor(2.0),
            f"transformer.second.{down}.weight": torch.ones(2, 64),
            f"transformer.second.{up}.weight": torch.ones(32, 2),
        }
        found = lora_from_state_dict(tensors, prefix="transformer.")
        assert {name: (one.rank, one.scale) for name, one in found.items()} == {"first": (4, 0.5), "second": (2, 1.0)}
        add_lora(Two(), "file", found)

    @pytest.mark.parametrize(
        "key",
        [
            "first.lora_A.weight",
            "transformer.first.dora_scale",
            "transformer.first.hada_w1_a",
            "transformer.first.diff",
            "transformer.first.set_weight",
            "transformer.first.w_norm",
            "transformer.first.b_norm",
        ],
    )
    def test_other_methods_and_prefixes_are_refused_by_name(self, key: str) -> None:
        with pytest.raises(GgufLoraError) as caught:
            lora_from_state_dict({key: torch.ones(4, 4)}, prefix="transformer.")
        assert caught.value.field == key

    @pytest.mark.parametrize(("key", "added"), [("lora_B.bias", 0.5), ("diff_b", 1.0)])
    def test_a_bias_difference_comes_along(self, key: str, added: float) -> None:
        """PEFT scales the bias of `lora_B` by alpha / rank, as its product; kohya's `diff_b` is added whole."""
        factors = {"a.lora_A.weight": torch.ones(4, 8), "a.lora_B.weight": torch.ones(8, 4)}
        found = lora_from_state_dict(factors | {"a.alpha": torch.tensor(2.0), f"a.{key}": torch.ones(8)})
        assert found["a"].bias is not None
        assert found["a"].bias.tolist() == [added] * 8

    def test_bias_differences_that_do_not_fit_are_refused(self) -> None:
        factors = {"a.lora_A.weight": torch.ones(4, 8), "a.lora_B.weight": torch.ones(8, 4)}
        with pytest.raises(GgufLoraError, match=r"a: a bias of shape \(9,\) for 8 features"):
            lora_from_state_dict(factors | {"a.diff_b": torch.ones(9)})
        with pytest.raises(GgufLoraError, match="a: two bias differences"):
            lora_from_state_dict(factors | {"a.diff_b": torch.ones(8), "a.lora_B.bias": torch.ones(8)})
        with pytest.raises(GgufLoraError, match="layer 'a' has bias only"):
            lora_from_state_dict({"a.diff_b": torch.ones(8)})

    def test_half_a_pair_is_refused(self) -> None:
        with pytest.raises(GgufLoraError, match="layer 'a' has alpha and down only"):
            lora_from_state_dict({"a.lora_A.weight": torch.ones(4, 4), "a.alpha": torch.tensor(1.0)})

    def test_one_factor_under_two_names_is_refused(self) -> None:
        tensors = {"a.lora_A.weight": torch.ones(4, 4), "a.lora_down.weight": torch.ones(4, 4)}
        with pytest.raises(GgufLoraError, match=r"a.lora_down.weight: layer 'a' has its down twice; the file"):
            lora_from_state_dict(tensors | {"a.lora_B.weight": torch.ones(4, 4)})

    def test_an_alpha_of_several_numbers_is_refused(self) -> None:
        tensors = {"a.lora_A.weight": torch.ones(4, 4), "a.lora_B.weight": torch.ones(4, 4), "a.alpha": torch.ones(2)}
        with pytest.raises(GgufLoraError, match=r"a.alpha: holds 2 numbers, where one is needed"):
            lora_from_state_dict(tensors)

    def test_factors_of_a_convolution_are_refused_by_the_name_of_the_layer(self) -> None:
        tensors = {"deep.conv.lora_A.weight": torch.ones(4, 8, 3, 3), "deep.conv.lora_B.weight": torch.ones(8, 4, 1, 1)}
        with pytest.raises(GgufLoraError, match=r"deep.conv: factors of shapes") as caught:
            lora_from_state_dict(tensors)
        assert caught.value.field == "deep.conv"


@pytest.mark.parametrize("number", [True, float("nan"), float("-inf"), 10**400, "1", None])
def test_what_is_no_finite_number_is_no_strength_and_no_alpha(number: Any) -> None:
    model = Two()
    add_lora(model, "a", for_both())
    with pytest.raises(GgufLoraError, match=r"the strength of adapter 'b' is .*; pass a finite number"):
        add_lora(model, "b", for_both(), strength=number)
    with pytest.raises(GgufLoraError, match=r"the strength of adapter 'a' is .*; pass a finite number"):
        set_lora_strength(model, "a", number)
    if number is not None:
        with pytest.raises(GgufLoraError, match=r"alpha is .*; pass a finite number"):
            LowRank(down=torch.ones(1, 2), up=torch.ones(2, 1), alpha=number)


@pytest.mark.parametrize("tile", [True, 0, -5, 2.5, float("nan"), "8"])
def test_what_is_no_number_of_weights_is_no_tile(tile: Any) -> None:
    with pytest.raises(ValueError, match="pass a positive whole number"):
        DequantConfig(tile_weights=tile)


def test_negative_sizes_are_refused_although_their_product_fits() -> None:
    kind = type_by_name("Q8_0")
    blocks = torch.zeros(kind.size_bytes(64), dtype=torch.uint8)
    refused = pytest.raises(GgufPackedError, match=r"a shape of \(-2, -32\); pass sizes of 0 or more")
    with refused:
        dequantize(blocks, kind, (-2, -32))
    with refused:
        PackedTensor(blocks, kind, (-2, -32))
    with pytest.raises(GgufTypeError, match="-256 weights"):
        kind.size_bytes(-256)
