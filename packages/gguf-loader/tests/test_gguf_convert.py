"""Loading a state dict: what can stay packed does, everything else is dense, and nothing is half done."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_packing import packed
from torch import Tensor, nn

from gguf_loader._errors import GgufModelError
from gguf_loader.packed._config import DequantConfig
from gguf_loader.packed._layers import GgufEmbedding, GgufLinear
from gguf_loader.packed._load import configure, load_packed, packed_layers
from gguf_loader.packed._tensor import PackedTensor


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * 2, self.bias)


class Model(nn.Module):
    """Something of everything: an embedding, linear layers, a norm, a bare parameter, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 256)
        self.up = nn.Linear(256, 512)
        self.norm = nn.LayerNorm(512)
        self.own = Scaled(512, 256, bias=False)
        self.shift = nn.Parameter(torch.zeros(256))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.ones(256), persistent=False)
        self.table: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.own(self.norm(self.up(self.embed(tokens))))
        return (x + self.shift) * self.table


def state() -> dict[str, Tensor]:
    return {
        "embed.weight": packed("Q6_K", 32, 256),
        "up.weight": packed("Q4_K", 512, 256),
        "up.bias": torch.linspace(0, 1, 512),
        "norm.weight": packed("Q8_0", 512),
        "norm.bias": torch.zeros(512),
        "own.weight": packed("Q5_0", 256, 512),
        "shift": packed("Q8_0", 256, seed=4),
        "steps": torch.tensor(7),
    }


def on_meta() -> Model:
    with torch.device("meta"):
        model = Model()
    model.table = torch.ones(256)
    return model


TOKENS = torch.tensor([[3, 1, 4], [1, 5, 9]])


def test_a_model_built_on_meta_computes_what_the_dense_one_computes() -> None:
    model, dense = on_meta(), Model()
    report = load_packed(model, state())
    dense.load_state_dict(state())
    assert torch.allclose(model(TOKENS), dense(TOKENS), rtol=1e-5)
    assert report.packed == ("embed.weight", "up.weight")
    assert set(report.dequantized) == {"norm.weight", "own.weight", "shift"}
    assert set(report.plain) == {"up.bias", "norm.bias", "steps"}
    assert (report.missing, report.unexpected, report.on_meta) == ((), (), ())
    assert model.steps == 7


def test_layers_keep_their_identity_names_and_hooks() -> None:
    model = on_meta()
    layer = model.up
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    load_packed(model, state())
    assert model.up is layer
    assert isinstance(layer, GgufLinear)
    assert isinstance(model.embed, GgufEmbedding)
    assert type(model.own) is Scaled
    assert [name for name, _ in packed_layers(model)] == ["embed", "up"]
    model(TOKENS)
    assert calls == ["hook"]


def test_packed_bytes_are_taken_over_not_copied() -> None:
    model, tensors = on_meta(), state()
    load_packed(model, tensors)
    assert model.up.weight.data_ptr() == tensors["up.weight"].data_ptr()
    assert model.up.bias.data_ptr() == tensors["up.bias"].data_ptr()


def test_the_model_s_dtype_wins_over_the_file_s() -> None:
    model, tensors = on_meta().to(torch.bfloat16), state()
    load_packed(model, tensors)
    for parameter in model.parameters():
        assert parameter.dtype is torch.bfloat16
        assert not parameter.requires_grad
    assert model.steps.dtype is torch.int64
    assert torch.equal(model.shift, packed("Q8_0", 256, seed=4).dequantize(torch.bfloat16))
    assert model.up.weight.data_ptr() == tensors["up.weight"].data_ptr()


def test_names_given_as_dense_are_dequantised() -> None:
    model = on_meta()
    report = load_packed(model, state(), dense={"up.weight"})
    assert type(model.up) is nn.Linear
    assert "up.weight" in report.dequantized
    assert torch.equal(model.up.weight, packed("Q4_K", 512, 256).dequantize())


def test_embeddings_that_cannot_be_looked_up_packed_are_dense() -> None:
    small, clipped = nn.Embedding(16, 128, device="meta"), nn.Embedding(8, 256, max_norm=1.0, device="meta")
    load_packed(small, {"weight": packed("Q4_K", 8, 256).view(16, 128)})
    load_packed(clipped, {"weight": packed("Q4_K", 8, 256)})
    assert type(small) is nn.Embedding
    assert type(clipped) is nn.Embedding


class Tied(nn.Module):
    """A language model's two ends."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 256, device="meta"), head
        head.weight = self.embed.weight


class TestTies:
    def test_tied_parameters_stay_tied_and_packed(self) -> None:
        model = Tied(nn.Linear(256, 32, bias=False, device="meta"))
        report = load_packed(model, {"embed.weight": packed("Q6_K", 32, 256)})
        assert isinstance(model.embed, GgufEmbedding)
        assert isinstance(model.head, GgufLinear)
        assert model.embed.weight is model.head.weight
        assert report.missing == ()

    def test_one_owner_that_needs_it_dense_makes_all_dense(self) -> None:
        model = Tied(Scaled(256, 32, bias=False, device="meta"))
        load_packed(model, {"embed.weight": packed("Q6_K", 32, 256), "head.weight": packed("Q6_K", 32, 256)})
        assert model.embed.weight is model.head.weight
        assert not isinstance(model.embed.weight, PackedTensor)

    def test_one_layer_under_two_names_is_one_layer(self) -> None:
        model = nn.Module()
        model.a = model.b = nn.Linear(256, 8, bias=False, device="meta")
        load_packed(model, {"a.weight": packed("Q4_K", 8, 256)})
        assert model.a is model.b
        assert [name for name, _ in packed_layers(model)] == ["a"]


class TestRefusals:
    def refused(self, change: dict[str, Tensor | None]) -> GgufModelError:
        model, tensors = on_meta(), state()
        for name, tensor in change.items():
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        with pytest.raises(GgufModelError) as caught:
            load_packed(model, tensors)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert type(model.up) is nn.Linear
        return caught.value

    def test_missing_names(self) -> None:
        error = self.refused({"up.weight": None, "shift": None})
        assert set(error.missing) == {"up.weight", "shift"}
        assert "2 missing" in str(error)

    def test_unexpected_names(self) -> None:
        error = self.refused({"down.weight": packed("Q4_K", 8, 256)})
        assert error.unexpected == ("down.weight",)
        assert "map the names" in str(error)

    def test_other_shapes(self) -> None:
        error = self.refused({"up.weight": packed("Q4_K", 256, 512)})
        assert error.mismatched == {"up.weight": ((256, 512), (512, 256))}
        assert "'up.weight' is (256, 512), not (512, 256)" in str(error)

    def test_other_shapes_are_refused_without_strict_too(self) -> None:
        with pytest.raises(GgufModelError, match=r"up\.bias"):
            load_packed(on_meta(), {"up.bias": torch.zeros(3)}, strict=False)


def test_without_strict_what_is_left_over_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model, tensors = on_meta(), state()
    tensors["more"] = tensors.pop("shift")
    with caplog.at_level(logging.WARNING, "gguf_loader"):
        report = load_packed(model, tensors, strict=False)
    assert (report.missing, report.unexpected, report.on_meta) == (("shift",), ("more",), ("shift",))
    assert "1 tensors still have no memory, among them shift" in caplog.text


def test_buffers_that_no_file_holds_are_reported() -> None:
    with torch.device("meta"):
        model = Model()
    assert load_packed(model, state()).on_meta == ("table",)


def test_a_packed_model_can_be_loaded_again() -> None:
    model = on_meta()
    load_packed(model, state())
    first = model(TOKENS)
    again = state() | {"up.weight": packed("Q5_K", 512, 256, seed=8)}
    report = load_packed(model, again)
    assert report.packed == ("embed.weight", "up.weight")
    assert not torch.equal(model(TOKENS), first)


def test_a_configuration_belongs_to_one_model() -> None:
    one, other = on_meta().bfloat16(), on_meta().bfloat16()
    load_packed(one, state())
    load_packed(other, state(), config=DequantConfig(dequant_dtype=torch.float32))
    assert isinstance(one.up, GgufLinear)
    assert isinstance(other.up, GgufLinear)
    x = torch.linspace(-1, 1, 256).bfloat16()
    rounded, exact = one.up(x), other.up(x)
    assert not torch.equal(rounded, exact)
    assert len({id(layer.config) for _, layer in packed_layers(one)}) == 1
    assert configure(one, other.up.config) == 2
    assert torch.equal(one.up(x), exact)


LOAD_AND_RUN = """
import sys, torch
from torch import nn
from gguf_packing import packed
from gguf_loader import load_packed
layer = nn.Linear(256, 8, bias=False, device="meta")
load_packed(layer, {"weight": packed("Q4_K", 8, 256)})
layer(torch.zeros(1, 256))
print(sorted(name for name in ("torch.distributed.tensor", "torch._dynamo", "triton", "gguf") if name in sys.modules))
"""


def test_loading_and_running_a_layer_imports_nothing_slow() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    assert result.stdout == "[]\n"
