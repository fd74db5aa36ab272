"""The driver: where results go, what memory it takes, what it refuses."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gguf_packing import BLOCK_TYPES, golden, random_blocks, same_bits

from gguf_loader._errors import GgufError, GgufPackedError, GgufTypeError
from gguf_loader._scratch import Scratch, ScratchPool
from gguf_loader._types import type_by_name
from gguf_loader.dequant._dequantize import dequantize
from gguf_loader.dequant._weights import CHUNK_WEIGHTS, SCALE_WEIGHTS

Q4_K = type_by_name("Q4_K")
MIB = 1 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "BF16"])
def test_out_receives_the_weights_and_is_returned(name: str, dtype: torch.dtype) -> None:
    blocks, expected = golden(name, "real")
    out = torch.full((8, 256), 7.0, dtype=dtype)
    assert dequantize(blocks, type_by_name(name), (8, 256), dtype=dtype, out=out) is out
    assert same_bits(out, expected.view(8, 256).to(dtype))


def test_out_may_be_rows_of_a_larger_tensor() -> None:
    blocks, expected = golden("Q6_K", "real")
    whole = torch.zeros(3, 2048)
    dequantize(blocks, type_by_name("Q6_K"), (2048,), out=whole[1])
    assert same_bits(whole[1], expected)
    assert not whole[0].any()
    assert not whole[2].any()


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(256, 8),
        torch.empty(8, 256, dtype=torch.float16),
        torch.empty(256, 8).t(),
        torch.empty(8, 256, device="meta"),
    ],
    ids=["shape", "dtype", "strides", "device"],
)
def test_out_that_does_not_fit_is_refused(out: torch.Tensor) -> None:
    blocks, _ = golden("Q4_K", "real")
    with pytest.raises(GgufPackedError, match=r"out is torch.float\d+ of shape") as caught:
        dequantize(blocks, Q4_K, (8, 256), out=out)
    assert caught.value.field == "out"


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_working_formats_of_ggml_are_refused_by_name(name: str) -> None:
    kind = type_by_name(name)
    with pytest.raises(GgufTypeError, match=f"{name} blocks have no conversion"):
        dequantize(random_blocks(kind, 256), kind, (256,))


@pytest.mark.parametrize(("shape", "size"), [((256,), 143), ((256,), 145), ((512,), 144), ((100,), 144)])
def test_blocks_that_do_not_fill_the_shape_are_refused(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(GgufError, match="weights"):
        dequantize(torch.zeros(size, dtype=torch.uint8), Q4_K, shape)


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(144),
        torch.zeros(144, dtype=torch.int8),
        torch.zeros(1, 144, dtype=torch.uint8),
        torch.zeros(288, dtype=torch.uint8)[::2],
    ],
    ids=["float32", "int8", "2-D", "strided"],
)
def test_blocks_that_are_not_the_bytes_of_a_file_are_refused(data: torch.Tensor) -> None:
    with pytest.raises(GgufPackedError, match="packed blocks must be 1-D contiguous uint8, found"):
        dequantize(data, Q4_K, (256,))


@pytest.mark.parametrize("shape", [(0,), (0, 256), (4, 0)])
def test_no_weights_are_no_trouble(shape: tuple[int, ...]) -> None:
    assert dequantize(torch.empty(0, dtype=torch.uint8), Q4_K, shape).shape == shape


def test_meta_blocks_give_meta_weights() -> None:
    found = dequantize(torch.empty(288, dtype=torch.uint8, device="meta"), Q4_K, (2, 256), dtype=torch.float16)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (2, 256), torch.float16)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_working_memory_stays_below_eight_mebibytes(name: str) -> None:
    kind, pool = type_by_name(name), ScratchPool()
    weights = SCALE_WEIGHTS + CHUNK_WEIGHTS
    blocks = torch.zeros(kind.size_bytes(weights), dtype=torch.uint8)
    dequantize(blocks, kind, (weights,), dtype=torch.bfloat16, scratch=pool)
    assert 2 * MIB <= pool.scratch().size_bytes <= 8 * MIB


def test_all_types_together_share_eight_mebibytes() -> None:
    pool = ScratchPool()
    for name in BLOCK_TYPES:
        kind = type_by_name(name)
        blocks = torch.zeros(kind.size_bytes(SCALE_WEIGHTS), dtype=torch.uint8)
        dequantize(blocks, kind, (SCALE_WEIGHTS,), dtype=torch.bfloat16, scratch=pool)
    assert pool.scratch().size_bytes <= 8 * MIB


def test_scratch_is_reused_not_grown() -> None:
    pool = ScratchPool()
    blocks, expected = golden("Q4_K", "real")
    dequantize(blocks, Q4_K, (2048,), scratch=pool)
    before = pool.scratch().size_bytes
    for _ in range(3):
        assert same_bits(dequantize(blocks, Q4_K, (2048,), scratch=pool), expected)
    assert pool.scratch().size_bytes == before


def test_scratch_survives_tensors_of_every_size() -> None:
    scratch = Scratch()
    device = torch.device("cpu")
    for size in [*range(1, 1200), 5]:
        buffer = scratch.take("a", (size,), torch.int32, device)
        assert buffer.shape == (size,)
        assert buffer.untyped_storage().nbytes() >= 4 * size
    assert scratch.size_bytes == 4 * 1199


def test_results_belong_to_the_caller_in_and_out_of_inference_mode() -> None:
    pool = ScratchPool()
    blocks, expected = golden("Q5_K", "real")
    kind = type_by_name("Q5_K")
    with torch.inference_mode():
        dequantize(blocks, kind, (2048,), scratch=pool)
    found = dequantize(blocks, kind, (2048,), scratch=pool)
    assert not found.is_inference()
    scale = torch.ones(1, requires_grad=True)
    (gradient,) = torch.autograd.grad((found * scale).sum(), scale)
    assert gradient == found.sum()
    assert same_bits(found, expected)


def test_threads_share_a_pool_but_no_memory() -> None:
    pool = ScratchPool()
    seen: list[Scratch] = []
    gate = threading.Barrier(4)

    def work(seed: int) -> bool:
        gate.wait(timeout=60)
        seen.append(pool.scratch())
        blocks, expected = golden("IQ4_XS" if seed % 2 else "Q6_K", "rand")
        kind = type_by_name("IQ4_XS" if seed % 2 else "Q6_K")
        return all(same_bits(dequantize(blocks, kind, (2048,), scratch=pool), expected) for _ in range(20))

    with ThreadPoolExecutor(4) as workers:
        assert all(workers.map(work, range(4)))
    assert len({id(scratch) for scratch in seen}) == 4


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))])
def test_a_copied_pool_starts_empty(copied: object) -> None:
    assert callable(copied)
    pool = ScratchPool()
    pool.scratch().take("a", (10,), torch.uint8, torch.device("cpu"))
    assert copied(pool).scratch().size_bytes == 0
    assert pool.scratch().size_bytes == 10
