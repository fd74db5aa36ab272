"""Weights by their file: exact, uncopied, and safe to write."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from shared_examples import every_type, same_bits, write_file, write_raw
from torch import nn

from ray_parallel.workers import SharedWeights, TensorSlot, WeightsError

DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_file(tmp_path / "model.safetensors", {"weight": torch.randn(8, 4), "bias": torch.randn(8)})


def test_every_type_arrives_bit_by_bit(tmp_path: Path) -> None:
    tensors = every_type(rare=False)
    opened = SharedWeights.from_file(write_file(tmp_path / "all.safetensors", tensors)).open()
    assert opened.mode == "file"
    assert set(opened) == set(tensors)
    assert len(opened) == len(tensors)
    assert all(same_bits(opened[name], tensors[name]) for name in tensors)


def test_a_write_stays_with_the_writer(path: Path) -> None:
    weights = SharedWeights.from_file(path)
    writer, reader = weights.open(), weights.open()
    before = reader["weight"].clone()
    writer["weight"].zero_()
    assert writer.written() == ("weight",)
    writer.require_unwritten()
    assert torch.equal(reader["weight"], before)
    assert torch.equal(weights.open()["weight"], before)


def test_a_module_takes_the_memory_itself(path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 8)
    opened = SharedWeights.from_file(path).open()
    opened.load_into(model)
    assert model.weight.data_ptr() == opened["weight"].data_ptr()
    assert model.bias.data_ptr() == opened["bias"].data_ptr()
    assert isinstance(model.weight, nn.Parameter)
    expected = nn.functional.linear(torch.ones(4), opened["weight"], opened["bias"])
    assert torch.equal(model(torch.ones(4)), expected)


def test_writes_through_a_module_are_seen(path: Path) -> None:
    model = nn.Linear(4, 8)
    opened = SharedWeights.from_file(path).open()
    opened.load_into(model)
    with torch.no_grad():
        model.bias.add_(1)
    assert opened.written() == ("bias",)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(4, 8, bias=False), "has unknown 'bias'"),
        (nn.Linear(5, 8), "has shapes that differ for 'weight'"),
        (nn.Sequential(nn.Linear(4, 8)), "misses '0.weight', '0.bias'"),
    ],
)
def test_weights_of_another_model_are_refused(path: Path, model: nn.Module, reason: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=reason):
        SharedWeights.from_file(path).open().load_into(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Copying(nn.Linear):
    """A layer of the kind that copies what it is given."""

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *rest: object) -> None:
        for name in ("weight", "bias"):
            setattr(self, name, nn.Parameter(state_dict[prefix + name].clone()))


def test_a_module_that_copies_is_told_so(path: Path) -> None:
    with pytest.raises(WeightsError, match="Copying: copied 'weight', 'bias' while loading"):
        SharedWeights.from_file(path).open().load_into(Copying(4, 8))


def test_tensors_keep_the_mapping_alive(path: Path) -> None:
    expected = SharedWeights.from_file(path).open()["weight"].clone()
    tensor = SharedWeights.from_file(path).open()["weight"]
    gc.collect()
    assert torch.equal(tensor, expected)


def test_bytes_of_another_format_come_with_their_notes(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(range(100)))
    packed = TensorSlot(
        name="blk.0.weight",
        dtype="uint8",
        shape=(18,),
        size_bytes=18,
        offset_bytes=20,
        note={"ggml_type": "Q4_0", "shape": [1, 32]},
    )
    opened = SharedWeights.from_file(file, slots=[packed], metadata={"general.architecture": "flux"}).open()
    assert opened["blk.0.weight"].tolist() == [*range(16, 34)]
    assert opened.layout.slots[0].note["ggml_type"] == "Q4_0"
    assert opened.layout.metadata["general.architecture"] == "flux"


def test_what_the_file_does_not_align_is_copied_and_counted(tmp_path: Path) -> None:
    header = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    opened = SharedWeights.from_file(write_raw(tmp_path / "odd.safetensors", header, data)).open()
    assert opened["a"].tolist() == [1.5, -2.0]
    assert opened["a"].data_ptr() % 4 == 0
    assert opened.copied_bytes == 8


def test_a_replaced_file_is_noticed(path: Path) -> None:
    weights = SharedWeights.from_file(path)
    assert weights.are_here()
    write_file(path, {"weight": torch.zeros(9, 4), "bias": torch.zeros(9)})
    assert not weights.are_here()
    with pytest.raises(WeightsError, match="is not the file that was shared; do not change a file"):
        weights.open()


def test_a_change_after_the_first_mib_that_keeps_the_length_is_noticed(tmp_path: Path) -> None:
    path = write_file(tmp_path / "large.safetensors", {"weight": torch.zeros(1 << 20)})
    weights = SharedWeights.from_file(path)
    with path.open("r+b") as file:
        file.seek(3_000_000)
        file.write(b"\xff" * 1000)
    assert not weights.are_here()
    with pytest.raises(WeightsError, match="is not the file that was shared"):
        weights.open()


def test_a_copy_with_the_same_times_is_another_file(path: Path) -> None:
    weights = SharedWeights.from_file(path)
    copied = path.with_name("copy")
    shutil.copy2(path, copied)
    copied.replace(path)
    assert not weights.are_here()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on Unix alone")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["pipe.safetensors", "pipe.safetensors.index.json", "pipe.gguf"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    slots = [TensorSlot(name="a", dtype="uint8", shape=(1,), size_bytes=1)] if name.endswith("gguf") else None
    for path in (tmp_path / name, tmp_path, Path("/dev/zero")):
        with pytest.raises(WeightsError, match=r"this is a (pipe|folder|device); name a regular file"):
            SharedWeights.from_file(path, slots=slots)


def test_a_file_that_becomes_a_pipe_is_not_here(path: Path) -> None:
    weights = SharedWeights.from_file(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WeightsError, match="is not the file that was shared"):
        weights.open()


def test_a_missing_file_is_not_here(path: Path) -> None:
    weights = SharedWeights.from_file(path)
    path.unlink()
    assert not weights.are_here()


def test_closed_weights_do_not_open(path: Path) -> None:
    with SharedWeights.from_file(path) as weights:
        opened = weights.open()
    with pytest.raises(WeightsError, match="were closed; share them again"):
        weights.open()
    assert opened["bias"].shape == (8,)


def test_a_description_travels_and_the_weights_do_not(path: Path) -> None:
    weights = SharedWeights.from_file(path)
    travelled = pickle.dumps(weights)
    assert len(travelled) < 2000
    arrived = pickle.loads(travelled)
    assert arrived.mode == "file"
    assert torch.equal(arrived.open()["weight"], weights.open()["weight"])


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="open files are listed on Linux")
def test_no_file_stays_open(path: Path) -> None:
    def count() -> int:
        gc.collect()
        return len([*DESCRIPTORS.iterdir()])

    before = count()
    opened = [SharedWeights.from_file(path).open() for _ in range(5)]
    # A mapping has one descriptor of its own, which lives with it.
    assert count() <= before + 5
    del opened
    assert count() == before
