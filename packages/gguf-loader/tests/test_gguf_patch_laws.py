"""A patched packed weight computes what its dense twin computes, whatever the patch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gguf_packing import packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gguf_loader import DequantConfig, GgufPackedError, LowRank, add_lora, load_packed, packed_linear, remove_lora

ROWS, COLUMNS = 24, 64
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SEEDS = st.integers(0, 99)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def difference(seed: int, strength: float) -> Callable[[Tensor], Tensor]:
    return lambda dense: dense + strength * random(*dense.shape, seed=seed).to(dense.dtype)


def in_place(seed: int, strength: float) -> Callable[[Tensor], Tensor]:
    """As the host's patches do that add to the tensor they are given."""
    return lambda dense: dense.add_(random(*dense.shape, seed=seed).to(dense.dtype), alpha=strength)


def replacement(seed: int, strength: float) -> Callable[[Tensor], Tensor]:
    return lambda dense: random(*dense.shape, seed=seed)


def scale(seed: int, strength: float) -> Callable[[Tensor], Tensor]:
    return lambda dense: dense.mul_(strength)


def low_rank(seed: int, strength: float) -> Callable[[Tensor], Tensor]:
    def change(dense: Tensor) -> Tensor:
        if dense.ndim < 2:
            return dense
        up, down = random(dense.shape[0], 4, seed=seed), random(4, dense.shape[1], seed=seed + 1)
        return (dense.float() + strength * (up @ down)).to(dense.dtype)

    return change


CHANGES = st.lists(
    st.builds(
        lambda kind, seed, strength: kind(seed, strength),
        st.sampled_from([difference, in_place, replacement, scale, low_rank]),
        SEEDS,
        st.floats(-2, 2),
    ),
    max_size=4,
)


@given(
    name=st.sampled_from(["Q4_0", "Q8_0", "MXFP4"]),
    weight_changes=CHANGES,
    bias_changes=CHANGES,
    dtype=DTYPES,
    product_dtype=st.none() | DTYPES,
    wants_gradient=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_changes_give_the_bits_of_the_dense_twin_and_write_to_nothing(
    name: str,
    weight_changes: list[Callable[[Tensor], Tensor]],
    bias_changes: list[Callable[[Tensor], Tensor]],
    dtype: torch.dtype,
    product_dtype: torch.dtype | None,
    wants_gradient: bool,
) -> None:
    used = product_dtype or dtype
    weight, bias = packed(name, ROWS, COLUMNS), random(ROWS, dtype=used, seed=1)
    x = random(3, COLUMNS, dtype=dtype, seed=2).requires_grad_(wants_gradient)
    owned = weight.packed.clone(), bias.clone()
    found = packed_linear(
        x,
        weight,
        bias,
        DequantConfig(dequant_dtype=product_dtype),
        weight_changes=weight_changes,
        bias_changes=bias_changes,
    )
    dense, dense_bias = weight.dequantize(used), bias.clone()
    for change in weight_changes:
        dense = change(dense).to(used)
    for change in bias_changes:
        dense_bias = change(dense_bias).to(used)
    assert torch.equal(found, F.linear(x.to(used), dense, dense_bias).to(dtype))
    assert found.requires_grad == wants_gradient
    assert torch.equal(weight.packed, owned[0])
    assert torch.equal(bias, owned[1])


def test_changes_that_do_not_fit_are_refused() -> None:
    weight, x, config = packed("Q8_0", ROWS, COLUMNS), random(2, COLUMNS), DequantConfig()
    with pytest.raises(GgufPackedError, match=r"a change made \(24, 64\) weights \(64, 24\)"):
        packed_linear(x, weight, None, config, weight_changes=[lambda dense: dense.t()])
    with pytest.raises(GgufPackedError, match="the layer has no bias to change"):
        packed_linear(x, weight, None, config, bias_changes=[lambda dense: dense])


ADAPTERS = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(
        st.integers(1, 6), st.floats(-2, 2), SEEDS, st.sampled_from([None, 0.5, 4.0]), st.booleans(), st.booleans()
    ),
    max_size=3,
)


@given(drawn=ADAPTERS, has_bias=st.booleans(), dtype=DTYPES, patch_dtype=st.none() | DTYPES)
@settings(max_examples=60, deadline=None)
def test_adapters_with_biases_give_the_bits_of_the_dense_twin(
    drawn: dict[str, tuple[int, float, int, float | None, bool, bool]],
    has_bias: bool,
    dtype: torch.dtype,
    patch_dtype: torch.dtype | None,
) -> None:
    """The dense twin is torch's layer with the same adapters: what a term costs in rounding, it costs both."""
    layer = nn.Linear(COLUMNS, ROWS, bias=has_bias, device="meta", dtype=dtype)
    state: dict[str, Tensor] = {"weight": packed("Q8_0", ROWS, COLUMNS)}
    load_packed(layer, state | ({"bias": random(ROWS)} if has_bias else {}), config=DequantConfig(patch_dtype=dtype))
    weight: Any = layer.weight
    twin = nn.Linear(COLUMNS, ROWS, bias=has_bias, dtype=dtype)
    twin.load_state_dict({"weight": weight.dequantize(dtype)} | ({"bias": layer.bias} if has_bias else {}))
    x, plain = random(3, COLUMNS, dtype=dtype, seed=2), layer(random(3, COLUMNS, dtype=dtype, seed=2))
    merged, bias = weight.dequantize(torch.float64), random(ROWS).to(dtype).double() * has_bias
    for name, (rank, strength, seed, alpha, shifts, is_removed) in drawn.items():
        one = LowRank(
            down=random(rank, COLUMNS, seed=seed) / 8,
            up=random(ROWS, rank, seed=seed + 1) / 8,
            alpha=alpha,
            bias=random(ROWS, seed=seed + 2) if shifts else None,
        )
        for model in (layer, twin):
            add_lora(model, name, {"": one}, strength=strength)
            if is_removed:
                remove_lora(model, name)
        if not is_removed:
            merged += strength * one.scale * (one.up.double() @ one.down.double())
            bias += strength * (one.bias.double() if one.bias is not None else 0)
    found = layer(x)
    assert torch.equal(found, twin(x))
    exact = F.linear(x.double(), merged, bias)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    assert ((found.double() - exact).abs() <= tolerance * max(1.0, float(exact.abs().max()))).all()
    for name, (*_, is_removed) in drawn.items():
        if not is_removed:
            remove_lora(layer, name)
    assert torch.equal(layer(x), plain)


def test_a_bias_difference_is_added_once_and_follows_the_layer() -> None:
    layer = nn.Linear(COLUMNS, ROWS, device="meta")
    load_packed(layer, {"weight": packed("Q8_0", ROWS, COLUMNS), "bias": torch.zeros(ROWS)})
    x = random(2, COLUMNS)
    plain = layer(x)
    shift = LowRank(down=torch.zeros(1, COLUMNS), up=torch.zeros(ROWS, 1), bias=torch.ones(ROWS))
    add_lora(layer, "a", {"": shift}, strength=0.5)
    assert torch.allclose(layer(x), plain + 0.5)
    assert torch.allclose(copy.deepcopy(layer)(x), plain + 0.5)
    assert list(layer.state_dict()) == ["weight", "bias"]
    layer.to("meta")
    assert {buffer.device.type for buffer in layer.buffers()} == {"meta"}
