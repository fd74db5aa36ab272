"""Real classes of diffusers and transformers, with few and random weights: placed from discovery to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from block_discovery import discover, trace_calls
from device_placement import (
    AcceleratorBackend,
    Backend,
    Device,
    EmulatedBackend,
    Hardware,
    Link,
    PlacementPlan,
    SameDeviceBackend,
    place,
    plan,
)
from device_placement.copying._clock import VirtualClock

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@dataclass(frozen=True)
class Case:
    """A model and what to call it with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]


def flux() -> nn.Module:
    """Two-stream and single blocks."""
    return diffusers.FluxTransformer2DModel(  # type: ignore[no-any-return]
        patch_size=1,
        in_channels=4,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def flux_inputs() -> dict[str, Any]:
    """16 image tokens, 6 of text."""
    return {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.randn(6, 3),
        "return_dict": False,
    }


def wan() -> nn.Module:
    """Video blocks with text attention."""
    return diffusers.WanTransformer3DModel(  # type: ignore[no-any-return]
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=64,
        ffn_dim=32,
        num_layers=4,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan_inputs() -> dict[str, Any]:
    """Two latent frames."""
    return {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([500]),
        "return_dict": False,
    }


def ltx() -> nn.Module:
    """Scale and shift tables beside the blocks."""
    return diffusers.LTXVideoTransformer3DModel(  # type: ignore[no-any-return]
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=4,
        caption_channels=16,
    )


def ltx_inputs() -> dict[str, Any]:
    """Two frames of 4 by 4."""
    return {
        "hidden_states": torch.randn(1, 32, 8),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([[500.0] * 32]),
        "encoder_attention_mask": torch.ones(1, 6).bool(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "return_dict": False,
    }


def unet() -> nn.Module:
    """Convolutions, skips, attention on two levels."""
    return diffusers.UNet2DConditionModel(  # type: ignore[no-any-return]
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )


def unet_inputs() -> dict[str, Any]:
    """One latent."""
    return {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.randn(1, 5, 32),
        "return_dict": False,
    }


def t5() -> nn.Module:
    """An encoder whose embedding is tied, and whose first block alone has a table of positions."""
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=4, num_heads=4)
    return transformers.T5EncoderModel(config)  # type: ignore[no-any-return]


def clip() -> nn.Module:
    """A text encoder with a table of positions."""
    config = transformers.CLIPTextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=16,
        eos_token_id=2,
    )
    return transformers.CLIPTextModel(config)  # type: ignore[no-any-return]


def llama() -> nn.Module:
    """A language model, its head tied to the embedding, with a buffer of frequencies that is not saved."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def tokens() -> dict[str, Any]:
    """Seven tokens."""
    return {"input_ids": torch.randint(3, 60, (1, 7)), "return_dict": False}


CASES: Mapping[str, Case] = {
    "flux": Case(flux, flux_inputs),
    "wan": Case(wan, wan_inputs),
    "ltx": Case(ltx, ltx_inputs),
    "unet": Case(unet, unet_inputs),
    "t5": Case(t5, tokens),
    "clip": Case(clip, tokens),
    "llama": Case(llama, tokens),
}

COMPUTE = {"shared": "cpu", "emulated": "emulated:0", "simulated": "sim:0"}
DONORS = {"shared": ("donor:0",), "emulated": ("emulated:1", "emulated:2"), "simulated": ("cpu", "sim:1")}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


@pytest.fixture(params=COMPUTE)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "simulated":
        request.getfixturevalue("sim")
    return str(request.param)


def machine(kind: str) -> tuple[Hardware, Backend]:
    """A machine of a kind, as the planner and as the engine see it."""
    compute, donors = COMPUTE[kind], DONORS[kind]
    links = tuple(Link(source=donor, target=compute, gb_per_second=1.0) for donor in donors)
    devices = tuple(Device(name=name, total_bytes=1 << 30, free_bytes=1 << 30) for name in (compute, *donors))
    backends: dict[str, Callable[[], Backend]] = {
        "shared": SameDeviceBackend,
        "emulated": lambda: EmulatedBackend(links, clock=VirtualClock()),
        "simulated": AcceleratorBackend,
    }
    return Hardware(compute=compute, devices=devices, links=links), backends[kind]()


def plan_of(model: nn.Module, hardware: Hardware, policy: Any) -> PlacementPlan:
    """Half of the model on the compute device, the rest on all donors."""
    tree = discover(model)
    half = tree.size_bytes // 2
    donors = ";".join(f"{name},{half // len(hardware.donors)}b" for name in hardware.donors[:-1])
    amounts = f"{hardware.compute},{half}b;{donors};{hardware.donors[-1]},*".replace(";;", ";")
    return plan(tree, amounts, hardware, policy=policy)


def run(model: nn.Module, inputs: Mapping[str, Any], device: torch.device) -> Any:
    """One pass, its results on the host."""

    def to(target: torch.device) -> Callable[[Any], Any]:
        return lambda item: item.to(target) if isinstance(item, Tensor) else item

    with torch.no_grad():
        result = model(**tree_map(to(device), dict(inputs)))
    return tree_map(to(torch.device("cpu")), tuple(result))


def assert_equal(one: Any, other: Any) -> None:
    """Every bit of every result."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("policy", ["stripe", "interleave"])
def test_a_real_model_is_bit_equal_when_placed(case: Case, kind: str, policy: str) -> None:
    model, inputs = case.build().eval().requires_grad_(False), case.inputs()
    expected = run(model, inputs, torch.device("cpu"))
    hardware, backend = machine(kind)
    made = plan_of(model, hardware, policy)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with place(model, made, backend=backend) as handle:
        for _ in range(3):
            assert_equal(run(model, inputs, backend.device(hardware.compute)), expected)
        stats = handle.stats()
        assert stats.uncalled == ()
        assert stats.calls > 0
        learnt = stats.surprises
        assert_equal(run(model, inputs, backend.device(hardware.compute)), expected)
        assert handle.stats().surprises == learnt
        assert all(torch.equal(value.cpu(), state[name]) for name, value in model.state_dict().items())
    model.to("cpu")
    assert_equal(run(model, inputs, torch.device("cpu")), expected)


def test_the_engine_sees_the_calls_that_discovery_traces(case: Case) -> None:
    model, inputs = case.build().eval().requires_grad_(False), case.inputs()
    tree = discover(model)
    with trace_calls(model, tree) as traced:
        run(model, inputs, torch.device("cpu"))
    hardware, backend = machine("emulated")
    made = plan(tree, f"{hardware.donors[0]},*", hardware)
    streamed = {unit.path for unit in made.units if unit.streamed(made.compute)}
    with place(model, made, backend=backend) as handle:
        run(model, inputs, torch.device("cpu"))
        assert handle.stats().calls == sum(path in streamed for path in traced.calls)


def test_a_state_dict_loaded_while_placed_reaches_the_output(case: Case, kind: str) -> None:
    model, other, inputs = case.build().eval(), case.build().eval(), case.inputs()
    expected = run(other, inputs, torch.device("cpu"))
    hardware, backend = machine(kind)
    with place(model, plan_of(model, hardware, "stripe"), backend=backend):
        run(model, inputs, backend.device(hardware.compute))
        model.load_state_dict(other.state_dict())
        assert_equal(run(model, inputs, backend.device(hardware.compute)), expected)


def test_the_scheduler_loop_of_a_pipeline_is_bit_equal(kind: str) -> None:
    torch.manual_seed(0)
    model, inputs = unet().eval().requires_grad_(False), unet_inputs()
    scheduler = diffusers.DDIMScheduler()

    def sample(device: torch.device) -> Tensor:
        scheduler.set_timesteps(4)
        latent: Tensor = inputs["sample"]
        for timestep in scheduler.timesteps:
            noise = run(model, {**inputs, "sample": latent, "timestep": timestep}, device)[0]
            latent = scheduler.step(noise, timestep, latent).prev_sample
        return latent

    expected = sample(torch.device("cpu"))
    hardware, backend = machine(kind)
    with place(model, plan_of(model, hardware, "stripe"), backend=backend) as handle:
        assert torch.equal(sample(backend.device(hardware.compute)), expected)
        assert handle.stats().passes == 4
