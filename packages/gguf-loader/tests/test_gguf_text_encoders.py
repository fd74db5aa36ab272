from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as raw
import gguf_convert as convert
import pytest
import torch

from gguf_loader import GgufKeyError, load_packed, load_text_encoder
from gguf_loader.packed._tensor import PackedTensor

transformers = pytest.importorskip("transformers")

HIDDEN, HEADS, KV_HEADS, LAYERS, VOCABULARY = 64, 4, 2, 2, 96
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 16, "d_ff": 96, "num_layers": LAYERS, "num_heads": HEADS,
}  # fmt: skip
GEMMA4: dict[str, Any] = DECODER | {
    "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": KV_HEADS, "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass
class Case:
    """A model class, how llama.cpp would name it, and what its converter does to the weights."""

    name: str
    model: str
    config: str
    settings: dict[str, Any]
    architecture: str
    interleaved: bool = False
    raised_norms: bool = False

    def build(self, seed: int) -> torch.nn.Module:
        config = getattr(transformers, self.config)(**self.settings)
        model: torch.nn.Module = getattr(transformers, self.model)(config).eval()
        convert.randomize(model, seed)
        model.tie_weights()  # type: ignore[operator]
        return model

    def tensors(self, model: torch.nn.Module) -> convert.Tensors:
        """The original checkpoint: each parameter once, however many names it has."""
        seen: set[int] = set()
        tensors = {}
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                tensors[name] = tensor
        return tensors

    def metadata(self) -> dict[str, Any]:
        heads = {"head_count": HEADS, "head_count_kv": KV_HEADS}
        return {f"{self.architecture}.attention.{key}": value for key, value in heads.items()}

    def write(self, model: torch.nn.Module, path: Path, kind: str = "F32") -> Path:
        tensors = self.tensors(model)
        if self.interleaved:
            tensors = convert.interleave_heads(tensors, HEADS, KV_HEADS)
        if self.raised_norms:
            tensors = convert.raise_norms(tensors)
        suffixed = {with_suffix(name): tensor for name, tensor in tensors.items()}
        named = convert.gguf_names(suffixed, self.architecture, LAYERS)
        return convert.write(path, self.architecture, named, self.metadata(), kind)

    def load(self, state_dict: dict[str, torch.Tensor]) -> torch.nn.Module:
        """A model of other random weights, into which every tensor of the file is loaded."""
        model = self.build(seed=99)
        result = model.load_state_dict(state_dict, strict=False)
        tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        assert set(result.missing_keys) <= tied
        assert not result.unexpected_keys
        model.tie_weights()  # type: ignore[operator]
        return model


def with_suffix(name: str) -> str:
    """Gemma 4's bare parameters, which llama.cpp gives a suffix before it looks them up."""
    return f"{name}.weight" if name.endswith(("layer_scalar", "experts.gate_up_proj", "experts.down_proj")) else name


CASES = [
    Case("t5 v1.0", "T5EncoderModel", "T5Config", T5 | {"feed_forward_proj": "relu"}, "t5encoder"),
    Case("t5 v1.1", "T5EncoderModel", "T5Config", T5 | {"feed_forward_proj": "gated-gelu"}, "t5encoder"),
    Case("umt5", "UMT5EncoderModel", "UMT5Config", T5 | {"feed_forward_proj": "gated-gelu"}, "t5encoder"),
    Case("t5 with decoder", "T5ForConditionalGeneration", "T5Config", T5 | {"feed_forward_proj": "gated-gelu"}, "t5"),
    Case("llama", "LlamaForCausalLM", "LlamaConfig", DECODER, "llama", interleaved=True),
    Case("mistral", "MistralForCausalLM", "MistralConfig", DECODER | {"head_dim": 32}, "llama", interleaved=True),
    Case("mistral 3", "MistralForCausalLM", "MistralConfig", DECODER | {"head_dim": 32}, "mistral3", interleaved=True),
    Case("qwen2", "Qwen2ForCausalLM", "Qwen2Config", DECODER, "qwen2"),
    Case("qwen3", "Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 32}, "qwen3"),
    Case("gemma2", "Gemma2ForCausalLM", "Gemma2Config",
         DECODER | {"head_dim": 16, "tie_word_embeddings": True}, "gemma2", raised_norms=True),
    Case("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", DECODER | {"head_dim": 16}, "gemma3", raised_norms=True),
    Case("gemma4", "Gemma4ForCausalLM", "Gemma4TextConfig",
         GEMMA4 | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}, "gemma4"),
    Case("gemma4 with experts", "Gemma4ForCausalLM", "Gemma4TextConfig",
         GEMMA4 | {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
                   "moe_intermediate_size": 32}, "gemma4"),
]  # fmt: skip


def outputs(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 40, 3, 77, 2, 8, 21, 30, 11, 6]])
    arguments = {"decoder_input_ids": ids} if hasattr(model, "decoder") else {}
    with torch.no_grad():
        result = model(input_ids=ids, **arguments)
    found: torch.Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_of_the_gguf_file_computes_what_the_original_computes(tmp_path: Path, case: Case) -> None:
    original = case.build(seed=1)
    encoder = load_text_encoder(case.write(original, tmp_path / "model.gguf"))
    assert encoder.unmapped == ()
    assert encoder.projector is None
    again = case.load(encoder.state_dict)
    assert torch.equal(outputs(again), outputs(original))
    assert not torch.equal(outputs(again), outputs(case.build(seed=99)))


@pytest.mark.parametrize("name", ["t5 v1.1", "llama", "gemma3"])
def test_half_precision_weights_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    original = case.build(seed=1)
    rounded = case.build(seed=1)
    for tensor in rounded.state_dict().values():
        if tensor.ndim > 1:
            tensor.copy_(tensor.half())
    encoder = load_text_encoder(case.write(original, tmp_path / "half.gguf", "F16"))
    assert {tensor.dtype for tensor in encoder.state_dict.values()} == {torch.float16, torch.float32}
    assert torch.equal(outputs(case.load(encoder.state_dict)), outputs(rounded))


@pytest.mark.parametrize("name", ["t5 v1.1", "llama", "qwen3", "gemma3"])
def test_quantised_weights_stay_packed_and_differ_from_the_original_by_their_rounding_alone(
    tmp_path: Path, name: str
) -> None:
    case = next(case for case in CASES if case.name == name)
    original = case.build(seed=1)
    rounded = case.build(seed=1)
    for tensor in rounded.state_dict().values():
        if convert.whole_blocks(tensor, "Q8_0"):
            kind = gguf.GGMLQuantizationType.Q8_0
            blocks = gguf.quants.quantize(tensor.numpy(), kind)
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    encoder = load_text_encoder(case.write(original, tmp_path / "packed.gguf", "Q8_0"), dtype=torch.float32)
    packed = [name for name, tensor in encoder.state_dict.items() if isinstance(tensor, PackedTensor)]
    assert packed == [name for name, tensor in encoder.state_dict.items() if convert.whole_blocks(tensor, "Q8_0")]
    assert torch.equal(outputs(case.load(encoder.state_dict)), outputs(rounded))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_reordered_and_shifted_tensors_are_copied(tmp_path: Path) -> None:
    llama = next(case for case in CASES if case.name == "llama")
    path = llama.write(llama.build(seed=1), tmp_path / "llama.gguf")
    encoder = load_text_encoder(path)
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in line.split("-")) for line in maps]
    copied = {
        name
        for name, tensor in encoder.state_dict.items()
        if not any(start <= tensor.data_ptr() < end for start, end in ranges)
    }
    assert copied == {name for name in encoder.state_dict if "q_proj" in name or "k_proj" in name}


def test_names_that_no_table_knows_are_reported_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {
        "token_embd.weight": torch.zeros(8, 4),
        "blk.0.attn_norm.weight": torch.zeros(4),
        "blk.0.attn_norm.weight.more": torch.zeros(4),
        "pre.blk.0.attn_norm.weight": torch.zeros(4),
        "rope_freqs.weight": torch.zeros(4),
    }
    with caplog.at_level(logging.WARNING, "gguf_loader"):
        encoder = load_text_encoder(convert.write(tmp_path / "odd.gguf", "qwen3", tensors, {}))
    assert set(encoder.state_dict) == {"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"}
    assert encoder.unmapped == ("blk.0.attn_norm.weight.more", "pre.blk.0.attn_norm.weight")
    assert "no name is known for 'blk.0.attn_norm.weight.more', 'pre.blk.0.attn_norm.weight'" in caplog.text


def test_an_unknown_architecture_can_be_named_by_hand(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": torch.zeros(8, 4)}
    path = convert.write(tmp_path / "new.gguf", "qwen9", tensors, {})
    with pytest.raises(GgufKeyError, match="no text encoder is known under the architecture 'qwen9'; name the one"):
        load_text_encoder(path)
    encoder = load_text_encoder(path, architecture="qwen3")
    assert (encoder.component, set(encoder.state_dict)) == ("qwen3", {"model.embed_tokens.weight"})


def test_a_file_that_does_not_say_what_it_is_has_its_head_counts_under_the_name_that_is_given(tmp_path: Path) -> None:
    rows = torch.arange(16.0).view(8, 2)
    path = raw.File(
        pairs=[raw.pair("llama.attention.head_count", raw.U32, 2)],
        tensors=[raw.Tensor("blk.0.attn_q.weight", (2, 8), raw.F32, rows.numpy().tobytes())],
    ).write(tmp_path / "nameless.gguf")
    with pytest.raises(GgufKeyError, match="no text encoder is known under the architecture None"):
        load_text_encoder(path)
    found = load_text_encoder(path, architecture="llama").state_dict["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(convert.interleave(found, 2), rows)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_a_file_with_the_original_names_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    tensors = {name: torch.arange(8.0).view(4, 2), "anything.else": torch.zeros(2)}
    encoder = load_text_encoder(convert.write(tmp_path / "pig.gguf", "pig", tensors, {}))
    assert (encoder.component, encoder.unmapped) == ("original", ())
    assert set(encoder.state_dict) == set(tensors)
    assert torch.equal(encoder.state_dict[name], tensors[name])


@pytest.mark.parametrize("name", ["llama", "gemma3", "t5 v1.1"])
def test_a_packed_text_encoder_runs_without_being_unpacked(tmp_path: Path, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    encoder = load_text_encoder(case.write(case.build(seed=1), tmp_path / "packed.gguf", "Q8_0"), dtype=torch.float32)
    dense = case.load(encoder.state_dict)
    packed = case.build(seed=99)
    report = load_packed(packed, encoder.state_dict, strict=False)
    assert not report.unexpected
    assert len(report.packed) > 8
    assert torch.allclose(outputs(packed), outputs(dense), atol=1e-4, rtol=1e-4)


def test_a_diffusion_model_is_no_text_encoder(tmp_path: Path) -> None:
    tensors = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 4)}
    with pytest.raises(GgufKeyError, match="none of its 1 tensors has a name of llama; load it as a diffusion model"):
        load_text_encoder(convert.write(tmp_path / "flux.gguf", "llama", tensors, {}))
