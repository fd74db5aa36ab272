"""The operators: what torch.compile sees, and that torch finds them well-formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gguf_packing import packed, same_bits
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from gguf_loader._types import type_by_name
from gguf_loader.dequant._dequantize import dequantize_op
from gguf_loader.packed._load import load_packed
from gguf_loader.packed._lora import add_lora, set_lora_strength
from gguf_loader.packed._low_rank import LowRank
from gguf_loader.packed._operators import linear_op
from gguf_loader.packed._tensor import PackedTensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear, self.conv = nn.Embedding(16, 256), nn.Linear(256, 32), nn.Conv1d(32, 8, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.conv(torch.relu(self.linear(self.embed(tokens))).transpose(1, 2))
        return found


def net() -> Net:
    with torch.device("meta"):
        model = Net()
    load_packed(
        model,
        {
            "embed.weight": packed("Q6_K", 16, 256),
            "linear.weight": packed("Q4_K", 32, 256),
            "linear.bias": torch.ones(32),
            "conv.weight": packed("Q8_0", 8, 32, 1),
            "conv.bias": torch.zeros(8),
        },
    )
    return model


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def captured(function: Callable[..., Any], *args: Any) -> tuple[list[list[str]], Any]:
    """This package's operators in each graph that torch.compile hands to a backend, and the result of the call."""
    graphs: list[list[str]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(sorted(str(node.target) for node in graph.graph.nodes if "gguf_loader" in str(node.target)))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with torch.no_grad():
        return graphs, torch.compile(function, backend=aot_autograd(fw_compiler=compiler), fullgraph=True)(*args)


def test_dynamo_sees_one_node_a_layer_and_no_break() -> None:
    model = net()
    graphs, found = captured(model, TOKENS)
    assert graphs == [
        ["gguf_loader.dequantize.default", "gguf_loader.dequantize.default", "gguf_loader.linear.default"]
    ]
    assert torch.equal(found, model(TOKENS))


def test_dequantising_in_a_compiled_function_is_one_node() -> None:
    weight = packed("Q4_K", 4, 256)
    graphs, found = captured(lambda w, x: w.dequantize() + x, weight, torch.ones(4, 256))
    assert graphs == [["gguf_loader.dequantize.default"]]
    assert same_bits(found, weight.dequantize() + 1)


def test_the_same_graph_serves_other_weights_of_the_type() -> None:
    model, other = net(), net()
    other.linear.weight = nn.Parameter(packed("Q4_K", 32, 256, seed=5), requires_grad=False)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    with torch.no_grad():
        compiled = torch.compile(lambda m, t: m(t), backend=counter, fullgraph=True)
        for one in (model, other, model):
            assert torch.equal(compiled(one, TOKENS), one(TOKENS))
    assert counter.frame_count <= 2


def test_a_compiled_model_takes_new_strengths_without_compiling_again() -> None:
    model = net()
    add_lora(model, "style", {"linear": LowRank(down=torch.ones(2, 256) / 256, up=torch.ones(32, 2))})
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    with torch.no_grad():
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for step in range(1, 12):
            set_lora_strength(model, "style", step / 10)
            assert torch.equal(compiled(TOKENS), model(TOKENS))
    assert counter.frame_count == 1


def test_aot_autograd_gives_the_same_gradients() -> None:
    model = net()
    x = torch.randn(2, 256, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(model.linear, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(model.linear(x).sum(), x)
    assert torch.equal(found, expected)


def test_blocks_that_are_only_traced_go_to_the_operator() -> None:
    blocks = packed("Q4_K", 8, 256).packed
    with torch._subclasses.FakeTensorMode() as mode:
        found = PackedTensor(mode.from_tensor(blocks), type_by_name("Q4_K"), (8, 256)).dequantize(torch.float16)
    assert isinstance(found, torch._subclasses.FakeTensor)
    assert (found.shape, found.dtype) == ((8, 256), torch.float16)


def parts(weight: PackedTensor) -> tuple[Tensor, int]:
    return weight.packed, weight.ggml_type.id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_finds_the_operators_well_formed(dtype: torch.dtype) -> None:
    blocks, number = parts(packed("Q4_K", 8, 256))
    torch.library.opcheck(dequantize_op, (blocks, number, [8, 256], dtype))
    for x in (torch.randn(2, 256, dtype=dtype), torch.randn(2, 3, 256, dtype=dtype, requires_grad=True)):
        for bias in (None, torch.randn(8, dtype=dtype, requires_grad=x.requires_grad)):
            torch.library.opcheck(linear_op, (x, blocks, bias, number, 8, dtype, 1024))


def test_operators_know_their_shapes_without_computing() -> None:
    blocks, number = parts(packed("Q4_K", 8, 256))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(blocks)
        assert dequantize_op(fake, number, [8, 256], torch.float16).shape == (8, 256)
        x = torch.empty(5, 7, 256, dtype=torch.bfloat16)
        y = linear_op(x, fake, None, number, 8, torch.float32, 1024)
        assert (y.shape, y.dtype) == ((5, 7, 8), torch.bfloat16)
