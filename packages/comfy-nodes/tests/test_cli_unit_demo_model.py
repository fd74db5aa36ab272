"""Laws of the demo's model: the file holds it exactly, every part of it matters, and sampling is repeatable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from comfy_nodes.cli.demo._model import (
    DemoConfig,
    DemoTransformer,
    load_checkpoint,
    sample,
    write_checkpoint,
)

TINY = DemoConfig(blocks=3, width=32, heads=2, image_size=8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_checkpoint(path, TINY, seed=7)
    return path


def test_the_default_model_is_large_enough_to_stream_and_small_enough_to_write() -> None:
    with torch.device("meta"):
        model = DemoTransformer(DemoConfig())
    size_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert 50 << 20 <= size_bytes <= 150 << 20
    assert 12 <= len(model.blocks) <= 24
    blocks_bytes = sum(tensor.nbytes for tensor in model.blocks.state_dict().values())
    assert blocks_bytes > 0.95 * size_bytes


def test_the_file_gives_back_the_model(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    assert model.config == TINY
    with safe_open(checkpoint, framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, file.get_tensor(name))


def test_a_loaded_model_is_for_inference_on_the_cpu(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    assert not model.training
    assert {(tensor.device.type, tensor.requires_grad) for tensor in model.state_dict(keep_vars=True).values()} == {
        ("cpu", False)
    }


def test_write_returns_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    assert write_checkpoint(path, TINY, seed=0) == path.stat().st_size


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        write_checkpoint(path, TINY, seed=seed)
    first, second, third = (path.read_bytes() for path in files)
    assert first == second != third


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors has no 'torchspan\.demo'"):
        load_checkpoint(path)


@pytest.mark.parametrize(("field", "value"), [("blocks", 0), ("heads", 3), ("patch_size", 3)])
def test_a_shape_that_cannot_be_built_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=r"at least 1|must be a multiple"):
        dataclasses.replace(TINY, **{field: value})


def test_the_output_is_shaped_like_the_latent(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    out = model(torch.randn(TINY.latent_shape), torch.tensor([0.5]), torch.tensor([1]))
    assert out.shape == TINY.latent_shape
    assert out.isfinite().all()


def test_every_tensor_has_a_say_in_the_output(checkpoint: Path) -> None:
    """A placement that lost any tensor would show in the output difference of the demo."""
    model = load_checkpoint(checkpoint)
    before = sample(model, TINY, steps=1, seed=0)
    for name, tensor in model.state_dict().items():
        kept = tensor.clone()
        tensor.add_(0.5)
        assert not torch.equal(sample(model, TINY, steps=1, seed=0), before), name
        tensor.copy_(kept)
    assert torch.equal(sample(model, TINY, steps=1, seed=0), before)


def test_sampling_repeats_exactly_and_depends_on_the_seed(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    first, second, other = (sample(model, TINY, steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_sampling_leaves_the_global_generator_alone(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    sample(load_checkpoint(checkpoint), TINY, steps=1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_step_is_one_pass_and_is_reported(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    passes: list[float] = []
    model.register_forward_pre_hook(lambda module, inputs: passes.append(inputs[1].item()))
    reported: list[int] = []
    sample(model, TINY, steps=4, seed=0, after_step=reported.append)
    assert passes == [1.0, 0.75, 0.5, 0.25]
    assert reported == [1, 2, 3, 4]


def test_a_constant_velocity_is_integrated_exactly() -> None:
    """Euler steps are exact where the velocity does not change: noise minus velocity."""

    class Constant(torch.nn.Module):
        def forward(self, latent: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return torch.full_like(latent, 0.5)

    noise = torch.randn(TINY.latent_shape, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(sample(Constant(), TINY, steps=4, seed=5), noise - 0.5)
