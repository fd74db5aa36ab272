"""Laws of the demo on GGUF: packed in the file, in the plan and on the way, and quantisation is all that differs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode
from comfy_nodes.cli._parser import GGUF_TYPES
from comfy_nodes.cli.demo import _demo
from comfy_nodes.cli.demo._file import DemoFile, gguf_file, safetensors_file
from comfy_nodes.cli.demo._gguf import load_dequantized, load_quantized, write_quantized
from comfy_nodes.cli.demo._model import DemoConfig, DemoTransformer, empty_model, random_weights, sample
from device_placement import PlacementPlan
from gguf_loader import GgufError, PackedTensor, packed_layers, read_header, type_by_name

SMALL = ["--blocks", "8", "--steps", "2", "--link", "100"]
TINY = DemoConfig(blocks=2, width=64, heads=2, image_size=8)


def written(path: Path, type_name: str) -> Path:
    write_quantized(path, TINY, random_weights(TINY, seed=3), type_name)
    return path


def can_be_written(kind: gguf.GGMLQuantizationType) -> bool:
    block_size, _ = gguf.GGML_QUANT_SIZES[kind]
    if block_size == 1 or DemoConfig().width % block_size:
        return False
    try:
        gguf.quants.quantize(np.ones((1, block_size), np.float32), kind)
    except NotImplementedError:
        return False
    return True


def test_the_choices_are_what_can_be_written() -> None:
    assert sorted(GGUF_TYPES) == sorted(kind.name for kind in gguf.GGMLQuantizationType if can_be_written(kind))


@pytest.mark.parametrize("type_name", GGUF_TYPES)
def test_matrices_stay_packed_and_the_rest_is_exact(type_name: str, tmp_path: Path) -> None:
    model = load_quantized(written(tmp_path / "demo.gguf", type_name))
    original = random_weights(TINY, seed=3)
    packed = {f"{name}.weight" for name, _ in packed_layers(model)}
    assert packed == {
        name for name, tensor in original.items() if name.endswith("weight") and tensor.shape[1] % 32 == 0
    }
    for name, tensor in model.state_dict().items():
        if name in packed:
            assert isinstance(tensor, PackedTensor)
            assert tensor.ggml_type == type_by_name(type_name)
        else:
            assert torch.equal(tensor, original[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("type_name", GGUF_TYPES)
def test_quantisation_is_all_that_differs(type_name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "demo.gguf", type_name)
    dense = load_dequantized(path)
    assert not list(packed_layers(dense))
    latent, dense_latent = (sample(model, TINY, steps=2, seed=1) for model in (load_quantized(path), dense))
    assert torch.equal(latent, dense_latent)
    original = empty_model(TINY)
    original.load_state_dict(random_weights(TINY, seed=3), assign=True)
    assert not torch.equal(latent, sample(original, TINY, steps=2, seed=1))


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, "Q4_0").read_bytes() for name in ("a.gguf", "b.gguf"))
    assert first == second


def test_the_file_may_go_while_the_model_is_in_use(tmp_path: Path) -> None:
    path = written(tmp_path / "demo.gguf", "Q8_0")
    model = load_quantized(path)
    before = sample(model, TINY, steps=1, seed=1)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(sample(model, TINY, steps=1, seed=1), before)


def test_another_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_tensor("a", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"torchspan\.demo"):
        load_quantized(path)


def test_only_quantised_files_have_something_to_explain() -> None:
    assert safetensors_file().load_dense is None
    assert gguf_file("Q8_0").load_dense is load_dequantized
    assert safetensors_file().suffix != gguf_file("Q8_0").suffix


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    code: int
    out: str
    folder: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run of the demo on a quantised model, looked at by many tests."""
    folder = tmp_path_factory.mktemp("demo-gguf")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["demo", "--gguf", "--keep-model", *SMALL, "--out", str(folder)])
    return Finished(code, out.getvalue(), folder)


def test_the_demo_succeeds_and_quantisation_is_all_that_differs(finished: Finished) -> None:
    assert finished.code == ExitCode.OK
    assert "output difference to the unplaced model: 0.0\n" in finished.out
    assert "output difference to an ordinary model with the dequantised weights: 0.0\n" in finished.out
    error = re.search(r"output difference to the original model: ([\d.e-]+), ([\d.]+) %", finished.out)
    assert error
    assert 0 < float(error[1]) < 0.2
    assert 0 < float(error[2]) < 10


def test_the_steps_are_those_of_every_file(finished: Finished) -> None:
    titles = re.findall(r"^== (\d)\. .* ==$", finished.out, flags=re.MULTILINE)
    assert titles == [str(number) for number in range(1, 10)]
    assert "matrices in Q8_0, the rest in F32" in finished.out
    assert "no weight was read" in finished.out


def test_the_plan_has_the_packed_bytes_of_the_file(finished: Finished) -> None:
    placement = PlacementPlan.from_json((finished.folder / "plan.json").read_text())
    sizes = read_header(finished.folder / "demo.gguf").sizes()
    assert {home.name: home.size_bytes for unit in placement.units for home in unit.homes} == {
        name: size_bytes for name, (_, size_bytes) in sizes.items()
    }
    copied = re.search(r"copies brought (\d+) MiB in 2 steps", finished.out)
    assert copied
    # Packed on the way, too: dense, the same weights would be four times as many bytes.
    assert int(copied[1]) << 20 < 3.5 * placement.streamed_bytes


def test_a_difference_that_quantisation_does_not_explain_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged_file(type_name: str) -> DemoFile:
        def load_damaged(path: Path) -> DemoTransformer:
            model = load_dequantized(path)
            model.get_parameter("blocks.3.qkv.weight").add_(1e-3)
            return model

        return dataclasses.replace(gguf_file(type_name), load_dense=load_damaged)

    monkeypatch.setattr(_demo, "gguf_file", damaged_file)
    code = main(["demo", "--gguf", "Q4_0", "--no-svg", *SMALL, "--out", str(tmp_path)])
    assert code == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert "than an ordinary one with its weights dequantised" in captured.err
    assert "output difference to the unplaced model: 0.0\n" in captured.out
    assert list(tmp_path.glob("*.gguf")) == []
