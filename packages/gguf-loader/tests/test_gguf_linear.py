"""Products with packed weights equal products with the dequantised ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from gguf_packing import BLOCK_TYPES, packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gguf_loader._errors import GgufPackedError
from gguf_loader._types import type_by_name
from gguf_loader.packed._config import DequantConfig
from gguf_loader.packed._layers import GgufConv2d, GgufEmbedding, GgufLinear
from gguf_loader.packed._linear import packed_embedding, packed_linear
from gguf_loader.packed._load import load_packed
from gguf_loader.packed._tensor import PackedTensor
from gguf_loader.packed._tiles import Tiling


def activations(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the order of the sums in a product."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[found.dtype]
    return bool((found - expected).abs().max() <= tolerance * max(float(expected.abs().max()), 1e-6))


def linear_of(weight: PackedTensor, config: DequantConfig | None = None, bias: Tensor | None = None) -> GgufLinear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    load_packed(layer, {"weight": weight} | ({} if bias is None else {"bias": bias}), config=config)
    assert isinstance(layer, GgufLinear)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "IQ4_XS", "Q6_K"])
def test_a_packed_product_is_that_of_the_dense_weight(name: str, dtype: torch.dtype) -> None:
    weight, x = packed(name, 96, 256), activations(3, 5, 256, dtype=dtype)
    bias = activations(96, dtype=dtype, seed=1)
    for some_bias in (None, bias):
        found = packed_linear(x, weight, some_bias, DequantConfig(tile_weights=16 * 256))
        assert close(found, F.linear(x, weight.dequantize(dtype), some_bias))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_every_type_multiplies(name: str) -> None:
    weight, x = packed(name, 8, 256), activations(2, 256)
    assert close(packed_linear(x, weight, None, DequantConfig()), F.linear(x, weight.dequantize()))


@given(
    tile_weights=st.integers(1, 5000),
    rows=st.integers(1, 40),
    shape=st.sampled_from([(1,), (7,), (2, 3), (0,), (1, 0)]),
)
@settings(max_examples=60, deadline=None)
def test_the_cut_into_tiles_does_not_show(tile_weights: int, rows: int, shape: tuple[int, ...]) -> None:
    weight, x = packed("Q4_0", rows, 64), activations(*shape, 64)
    found = packed_linear(x, weight, None, DequantConfig(tile_weights=tile_weights))
    if x.numel() == 0:
        assert found.shape == (*shape, rows)
    else:
        assert close(found, F.linear(x, weight.dequantize()))


@given(columns=st.sampled_from([16, 48, 96, 100, 256, 320]), tile_weights=st.integers(1, 4096))
@settings(max_examples=60, deadline=None)
def test_tiles_hold_whole_blocks_and_all_rows_once(columns: int, tile_weights: int) -> None:
    kind = type_by_name("Q8_0")
    rows = 64
    tiling = Tiling(kind=kind, rows=rows, columns=columns, dtype=torch.float32, tile_weights=tile_weights)
    assert (tiling.tile_rows * columns) % kind.block_size == 0
    weight = packed("Q8_0", rows, columns)
    tiles = [(part, tile.clone()) for part, tile in tiling.tiles(weight.packed, DequantConfig().scratch)]
    assert [row for part, _ in tiles for row in range(part.start, part.stop)] == list(range(rows))
    assert torch.equal(torch.cat([tile for _, tile in tiles]), weight.dequantize())


def test_no_more_than_a_tile_is_dense() -> None:
    config = DequantConfig(tile_weights=32 * 256)
    packed_linear(activations(2, 256), packed("Q8_0", 4096, 256), None, config)
    tile_bytes = 32 * 256 * 4
    assert tile_bytes <= config.scratch.scratch().size_bytes < 4 * tile_bytes


def test_activations_of_other_sizes_are_refused() -> None:
    with pytest.raises(GgufPackedError, match=r"shape \(2, 128\) do not fit a weight of shape \(8, 256\)"):
        packed_linear(activations(2, 128), packed("Q4_K", 8, 256), None, DequantConfig())
    with pytest.raises(GgufPackedError, match="do not fit"):
        packed_linear(activations(2, 256), packed("Q4_K", 2, 4, 256), None, DequantConfig())


@pytest.mark.parametrize("x", [activations(255), torch.tensor(1.0)])
def test_one_token_of_another_size_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(GgufPackedError, match=r"do not fit a weight of shape \(8, 256\)"):
        packed_linear(x, packed("Q4_K", 8, 256), None, DequantConfig())


def test_the_dequant_dtype_is_that_of_the_product_alone() -> None:
    weight, x = packed("Q4_K", 64, 256), activations(4, 256, dtype=torch.bfloat16)
    found = packed_linear(x, weight, None, DequantConfig(dequant_dtype=torch.float32))
    assert torch.equal(found, F.linear(x.float(), weight.dequantize(torch.float32)).bfloat16())
    rounded = packed_linear(x, weight, None, DequantConfig())
    assert not torch.equal(found, rounded)


def test_autocast_rules_a_packed_product_as_it_rules_a_dense_one() -> None:
    weight, x, bias = packed("Q4_K", 64, 256), activations(4, 256), activations(64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed_linear(x, weight, bias, DequantConfig())
        expected = F.linear(x, weight.dequantize(), bias)
    assert found.dtype is torch.bfloat16
    assert close(found, expected)


def test_one_token_without_a_batch_has_gradients_too() -> None:
    weight = packed("Q5_K", 24, 256)
    inputs = [activations(256).requires_grad_(), activations(24, seed=2).requires_grad_()]
    upstream = activations(24, seed=3)
    found = torch.autograd.grad(packed_linear(inputs[0], weight, inputs[1], DequantConfig()), inputs, upstream)
    expected = torch.autograd.grad(F.linear(inputs[0], weight.dequantize(), inputs[1]), inputs, upstream)
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_flow_to_activations_and_bias(bias: bool) -> None:
    weight = packed("Q5_K", 24, 256)
    x, b = activations(2, 3, 256).requires_grad_(), activations(24, seed=2).requires_grad_() if bias else None
    upstream = activations(2, 3, 24, seed=3)
    inputs = [x] if b is None else [x, b]
    found = torch.autograd.grad(packed_linear(x, weight, b, DequantConfig(tile_weights=2048)), inputs, upstream)
    expected = torch.autograd.grad(F.linear(x, weight.dequantize(), b), inputs, upstream)
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))


class TestEmbedding:
    @pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "IQ3_S"])
    def test_rows_are_those_of_the_dense_weight(self, name: str) -> None:
        weight = packed(name, 50, 256)
        indices = torch.tensor([[0, 49, 7], [7, 7, 31]])
        assert torch.equal(
            packed_embedding(indices, weight, DequantConfig()), F.embedding(indices, weight.dequantize())
        )

    def test_the_dtype_is_the_weight_s_whatever_products_are_computed_in(self) -> None:
        weight, indices = packed("Q8_0", 5, 64, dtype=torch.float16), torch.tensor(3)
        for config in (DequantConfig(), DequantConfig(dequant_dtype=torch.float32)):
            row = packed_embedding(indices, weight, config)
            assert (row.dtype, row.shape) == (torch.float16, (64,))

    def test_only_the_rows_that_are_looked_up_are_dequantised(self) -> None:
        config = DequantConfig()
        packed_embedding(torch.tensor([5]), packed("Q4_K", 2000, 256), config)
        assert config.scratch.scratch().size_bytes < 8 * 256 * 4

    def test_indices_out_of_range_are_an_index_error(self) -> None:
        with pytest.raises(IndexError):
            packed_embedding(torch.tensor([5]), packed("Q4_K", 5, 256), DequantConfig())

    def test_rows_that_share_a_block_are_refused(self) -> None:
        folded = packed("Q4_K", 4, 256).with_blocks(packed("Q4_K", 4, 256).packed, (8, 128))
        with pytest.raises(GgufPackedError, match="do not hold whole Q4_K blocks"):
            packed_embedding(torch.tensor([0]), folded, DequantConfig())


class TestLayers:
    def test_layers_are_instances_of_the_torch_layers_and_say_their_type(self) -> None:
        layer = linear_of(packed("Q4_K", 8, 256))
        assert isinstance(layer, nn.Linear)
        assert repr(layer) == "GgufLinear(in_features=256, out_features=8, bias=False, packed=Q4_K)"

    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_convolutions_equal_dense_ones(self, dims: int) -> None:
        dense = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](32, 6, 2, stride=2, padding=1, padding_mode="circular")
        layer = copy.deepcopy(dense).to("meta")
        weight = packed("Q8_0", *dense.weight.shape)
        load_packed(layer, {"weight": weight, "bias": torch.arange(6.0)})
        dense.load_state_dict({"weight": weight, "bias": torch.arange(6.0)})
        x = activations(2, 32, *[5] * dims)
        assert type(layer).__name__ == f"GgufConv{dims}d"
        assert torch.equal(layer(x), dense(x))

    def test_a_convolution_computes_in_the_configured_dtype(self) -> None:
        layer = nn.Conv2d(32, 4, 1, bias=False, device="meta")
        weight = packed("Q8_0", 4, 32, 1, 1)
        load_packed(layer, {"weight": weight}, config=DequantConfig(dequant_dtype=torch.float32))
        x = activations(1, 32, 3, 3, dtype=torch.bfloat16)
        assert isinstance(layer, GgufConv2d)
        assert torch.equal(layer(x), F.conv2d(x.float(), weight.dequantize(torch.float32)).bfloat16())

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_compute_the_same_with_memory_of_their_own(self, duplicate: object) -> None:
        assert callable(duplicate)
        layer, x = linear_of(packed("Q4_K", 8, 256), bias=torch.ones(8)), activations(2, 256)
        expected = layer(x)
        other = duplicate(layer)
        assert isinstance(other, GgufLinear)
        assert torch.equal(other(x), expected)
        assert other.config == layer.config
        assert other.config.scratch is not layer.config.scratch
        assert other.weight.data_ptr() != layer.weight.data_ptr()

    def test_a_state_dict_goes_round_packed(self) -> None:
        layer = linear_of(packed("Q4_K", 8, 256), bias=torch.ones(8))
        twin = linear_of(packed("Q4_K", 8, 256, seed=9), bias=torch.zeros(8))
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(twin.weight, layer.weight)
        assert twin.weight.data_ptr() != layer.weight.data_ptr()
        assert torch.equal(twin.bias, torch.ones(8))

    def test_a_state_dict_can_be_taken_over_without_a_copy(self) -> None:
        layer = linear_of(packed("Q4_K", 8, 256), bias=torch.ones(8))
        twin = linear_of(packed("Q5_K", 8, 256), bias=torch.zeros(8))
        twin.load_state_dict(layer.state_dict(), assign=True)
        assert twin.packed_weight.data_ptr() == layer.packed_weight.data_ptr()
        assert not twin.weight.requires_grad
        x = activations(2, 256)
        assert torch.equal(twin(x), layer(x))

    def test_a_dense_weight_put_in_its_place_is_named(self) -> None:
        layer = linear_of(packed("Q4_K", 8, 256))
        layer.weight = nn.Parameter(torch.zeros(8, 256))
        with pytest.raises(GgufPackedError, match=r"the weight of a GgufLinear is a dense torch.float32"):
            layer(activations(1, 256))

    def test_a_layer_moves_like_any_other(self) -> None:
        layer = linear_of(packed("Q4_K", 8, 256, dtype=torch.bfloat16), bias=torch.ones(8))
        x = activations(2, 256)
        before = layer(x)
        layer.to(torch.float16)
        assert (layer.weight.dtype, layer.bias.dtype) == (torch.float16, torch.float16)
        assert torch.equal(layer(x), before)
        assert layer.to("meta").weight.is_meta


def test_configurations_refuse_what_cannot_work() -> None:
    with pytest.raises(GgufPackedError, match="choose one of"):
        DequantConfig(dequant_dtype=torch.int8)
    with pytest.raises(GgufPackedError, match="choose one of"):
        DequantConfig(patch_dtype=torch.uint8)
    with pytest.raises(ValueError, match="tile_weights is 0"):
        DequantConfig(tile_weights=0)


def test_embedding_layers_look_up_packed_rows() -> None:
    layer = nn.Embedding(10, 256, device="meta")
    weight = packed("Q4_K", 10, 256)
    load_packed(layer, {"weight": weight})
    assert isinstance(layer, GgufEmbedding)
    assert torch.equal(layer(torch.tensor([3, 1])), weight.dequantize()[[3, 1]])
