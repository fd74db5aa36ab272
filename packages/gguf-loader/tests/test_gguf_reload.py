"""Loading a model a second time: from another file, whose tensors may be packed where the first one's were dense."""

from __future__ import annotations

import itertools

import pytest
import torch
from gguf_packing import packed
from torch import Tensor, nn

from gguf_loader import GgufEmbedding, GgufLinear, PackedTensor, load_packed, packed_layers


class Tied(nn.Module):
    """A table, a projection, and a head that shares the table's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 256)
        self.proj = nn.Linear(256, 256)
        self.head = nn.Linear(256, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.proj(self.embed(tokens)))
        return found


STATES: dict[str, dict[str, Tensor]] = {
    "packed": {"embed.weight": packed("Q6_K", 16, 256), "proj.weight": packed("Q4_K", 256, 256)},
    "other types": {"embed.weight": packed("Q8_0", 16, 256, seed=2), "proj.weight": packed("Q5_K", 256, 256, seed=2)},
    "table dense": {"embed.weight": torch.linspace(-1, 1, 4096).view(16, 256), "proj.weight": packed("Q4_K", 256, 256)},
    "dense": {"embed.weight": torch.linspace(-1, 1, 4096).view(16, 256), "proj.weight": torch.eye(256) / 2},
}
BIAS = {"proj.bias": torch.linspace(0, 1, 256)}
TOKENS = torch.tensor([[3, 1, 4], [1, 5, 9]])


def loaded(*names: str) -> Tied:
    model = Tied()
    for name in names:
        load_packed(model, STATES[name] | BIAS)
    return model


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(STATES, 2)))
def test_a_model_loaded_again_is_the_model_of_the_second_file(first: str, second: str) -> None:
    again, fresh = loaded(first, second), loaded(second)
    assert torch.equal(again(TOKENS), fresh(TOKENS))
    assert [(name, type(layer)) for name, layer in again.named_modules()] == [
        (name, type(layer)) for name, layer in fresh.named_modules()
    ]
    assert again.head.weight is again.embed.weight


def test_a_layer_that_becomes_dense_is_a_layer_of_torch_again() -> None:
    model = loaded("packed")
    table = model.embed
    calls: list[str] = []
    table.register_forward_hook(lambda *_: calls.append("hook"))
    assert isinstance(table, GgufEmbedding)
    report = load_packed(model, STATES["dense"] | BIAS)
    assert model.embed is table
    assert type(table) is nn.Embedding
    assert not hasattr(table, "config")
    assert set(report.plain) == {"embed.weight", "proj.weight", "proj.bias"}
    assert not list(packed_layers(model))
    model(TOKENS)
    assert calls == ["hook"]


def test_a_name_given_as_dense_unpacks_a_layer() -> None:
    model = loaded("packed")
    report = load_packed(model, STATES["packed"] | BIAS, dense={"proj.weight"})
    assert type(model.proj) is nn.Linear
    assert report.dequantized == ("proj.weight",)
    assert torch.allclose(model(TOKENS), loaded("packed")(TOKENS), rtol=1e-4, atol=1e-4)


def test_a_bias_alone_leaves_the_weight_packed() -> None:
    model = loaded("packed")
    report = load_packed(model, {"proj.bias": torch.zeros(256)}, strict=False)
    assert report.plain == ("proj.bias",)
    assert isinstance(model.proj, GgufLinear)
    assert isinstance(model.proj.weight, PackedTensor)
