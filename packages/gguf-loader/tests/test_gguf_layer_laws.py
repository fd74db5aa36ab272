"""Layers with packed weights against torch's own with the same weights dense, for any sizes and settings."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gguf_packing import packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gguf_loader import DequantConfig, GgufLinear, GgufPackedError, load_packed, packed_embedding, packed_linear

TYPES = st.sampled_from(["Q4_0", "Q8_0", "Q5_1", "MXFP4", "IQ4_NL"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
LEADING = st.lists(st.integers(1, 4), max_size=3)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    scale = max(1.0, float(expected.double().abs().max())) if expected.numel() else 1.0
    return bool(((found.double() - expected.double()).abs() <= TOLERANCE[found.dtype] * scale).all())


@given(
    name=TYPES,
    rows=st.integers(1, 20),
    blocks=st.integers(1, 4),
    leading=LEADING,
    has_bias=st.booleans(),
    dtype=DTYPES,
    product_dtype=st.none() | DTYPES,
    tile_weights=st.none() | st.integers(1, 600),
)
@settings(max_examples=120, deadline=None)
def test_a_product_is_the_dense_one_in_the_dtype_of_the_activations(
    name: str,
    rows: int,
    blocks: int,
    leading: list[int],
    has_bias: bool,
    dtype: torch.dtype,
    product_dtype: torch.dtype | None,
    tile_weights: int | None,
) -> None:
    weight, x = packed(name, rows, 32 * blocks), random(*leading, 32 * blocks, dtype=dtype)
    bias = random(rows, seed=1) if has_bias else None
    config = DequantConfig(dequant_dtype=product_dtype, tile_weights=tile_weights)
    found = packed_linear(x, weight, bias, config)
    used = product_dtype or dtype
    expected = F.linear(x.to(used), weight.dequantize(used), None if bias is None else bias.to(used)).to(dtype)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    # The narrower of the two dtypes says how far the order of the sums may show.
    rough = max((dtype, used), key=lambda one: TOLERANCE[one])
    assert close(found.to(rough), expected.to(rough))


@given(name=TYPES, rows=st.integers(1, 12), leading=LEADING, wants=st.sets(st.sampled_from(["x", "bias"]), min_size=1))
@settings(max_examples=60, deadline=None)
def test_gradients_are_those_of_the_dense_product_and_only_where_asked_for(
    name: str, rows: int, leading: list[int], wants: set[str]
) -> None:
    weight = packed(name, rows, 64)
    inputs = {"x": random(*leading, 64), "bias": random(rows, seed=1)}
    upstream = random(*leading, rows, seed=2)
    grads = []
    for dense in (False, True):
        leaves = {key: tensor.clone().requires_grad_(key in wants) for key, tensor in inputs.items()}
        config = DequantConfig(tile_weights=100)
        if dense:
            y = F.linear(leaves["x"], weight.dequantize(), leaves["bias"])
        else:
            y = packed_linear(leaves["x"], weight, leaves["bias"], config)
        y.backward(upstream)  # type: ignore[no-untyped-call]
        grads.append({key: leaf.grad for key, leaf in leaves.items()})
    for key in inputs:
        found, expected = grads[0][key], grads[1][key]
        assert (found is None) == (expected is None) == (key not in wants)
        if found is not None and expected is not None:
            assert close(found, expected)


@given(name=TYPES, rows=st.integers(1, 9), shape=LEADING, dtype=DTYPES, data=st.data())
@settings(max_examples=60, deadline=None)
def test_looked_up_rows_are_those_of_the_dense_table(
    name: str, rows: int, shape: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    weight = packed(name, rows, 64).to(dtype)
    count = int(torch.tensor(shape).prod()) if shape else 1
    indices = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count))).view(shape)
    found = packed_embedding(indices, weight, DequantConfig())  # type: ignore[arg-type]
    assert torch.equal(found, F.embedding(indices, weight.dequantize()))


@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    has_bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_convolution_is_the_dense_one_whatever_its_settings(has_bias: bool, dims: int, **choices: Any) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    choices = {"kernel_size": choices.pop("kernel"), "padding_mode": choices.pop("mode"), **choices}
    dense = kind(64, 8, bias=has_bias, **choices)
    state: dict[str, Tensor] = {"weight": packed("Q8_0", *dense.weight.shape)}
    state |= {"bias": random(8)} if has_bias else {}
    layer = kind(64, 8, bias=has_bias, **choices, device="meta")
    assert load_packed(layer, state).packed == ("weight",)
    dense.load_state_dict(state)
    x = random(2, 64, *[6] * dims)
    assert torch.equal(layer(x), dense(x))


def test_threads_that_share_a_model_compute_what_one_computes() -> None:
    model = nn.Sequential(nn.Linear(256, 512, device="meta"), nn.GELU(), nn.Linear(512, 64, device="meta"))
    state: dict[str, Tensor] = {"0.weight": packed("Q4_K", 512, 256), "2.weight": packed("Q6_K", 64, 512)}
    state |= {"0.bias": random(512), "2.bias": random(64)}
    load_packed(model, state, config=DequantConfig(tile_weights=10_000))
    inputs = [random(3, 256, seed=seed) for seed in range(8)]
    expected = [model(x) for x in inputs]
    found: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            found[index] = [model(inputs[index]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index, outputs in found.items():
        assert all(torch.equal(output, expected[index]) for output in outputs)
    assert len(found) == len(inputs)


def test_on_the_meta_device_only_shapes_are_computed() -> None:
    layer = nn.Linear(64, 8, device="meta")
    load_packed(layer, {"weight": packed("Q8_0", 8, 64), "bias": torch.ones(8)})
    layer.to("meta")
    found = layer(torch.empty(2, 5, 64, device="meta"))
    assert (found.shape, found.device.type) == ((2, 5, 8), "meta")


@pytest.mark.parametrize("shape", [(64,), (2, 2, 64)])
def test_a_table_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GgufPackedError, match=r"a table of shape \(.*64.*\) is no matrix"):
        packed_embedding(torch.tensor([0]), packed("Q8_0", *shape), DequantConfig())


def test_a_layer_with_a_dense_weight_in_its_place_can_still_be_printed() -> None:
    layer = nn.Linear(64, 8, bias=False, device="meta")
    load_packed(layer, {"weight": packed("Q8_0", 8, 64)})
    assert isinstance(layer, GgufLinear)
    layer.weight = nn.Parameter(torch.zeros(8, 64))
    assert repr(layer) == "GgufLinear(in_features=64, out_features=8, bias=False, packed=no)"
