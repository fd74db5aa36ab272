from __future__ import annotations

import gc
import struct
import subprocess
import sys
from pathlib import Path

import gguf_bytes as raw
import pytest
import torch

from gguf_loader import GgufKeyError, open_gguf, type_by_name

NATIVE = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and speaks of what Linux reserves for a mapping"
)


@pytest.fixture
def rich_path(tmp_path: Path) -> Path:
    return raw.rich().write(tmp_path / "rich.gguf")


def test_writing_to_a_tensor_never_reaches_the_file(rich_path: Path) -> None:
    before = rich_path.read_bytes()
    file = open_gguf(rich_path)
    file.native_tensor("norm").fill_(9)
    file.tensor_bytes("linear").zero_()
    assert file.native_tensor("norm").tolist() == [9, 9, 9, 9]
    assert rich_path.read_bytes() == before
    assert open_gguf(rich_path).native_tensor("norm").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_elsewhere_than_on_linux_the_mapping_is_private_too(
    rich_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf_loader.file._mapping.sys.platform", platform)
    file = open_gguf(rich_path)
    monkeypatch.undo()
    before = rich_path.read_bytes()
    file.native_tensor("norm").fill_(9)
    assert file.native_tensor("norm").tolist() == [9, 9, 9, 9]
    assert rich_path.read_bytes() == before


def test_two_views_of_a_tensor_share_their_memory(rich_path: Path) -> None:
    file = open_gguf(rich_path)
    assert file.native_tensor("norm").data_ptr() == file.tensor_bytes("norm").data_ptr()
    file.tensor_bytes("norm").zero_()
    assert file.native_tensor("norm").sum() == 0


def test_a_storage_is_that_of_its_tensor_alone(rich_path: Path) -> None:
    file = open_gguf(rich_path)
    assert file.tensor_bytes("linear").untyped_storage().nbytes() == 136
    assert file.native_tensor("norm").untyped_storage().nbytes() == 16


def test_tensors_outlive_the_file_object_and_the_name_of_the_file(rich_path: Path) -> None:
    tensor = open_gguf(rich_path).native_tensor("norm")
    rich_path.unlink()
    gc.collect()
    assert tensor.tolist() == [1, 2, 3, 4]


@linux
def test_the_mapping_goes_with_its_last_tensor(rich_path: Path) -> None:
    def mapped() -> bool:
        return str(rich_path) in Path("/proc/self/maps").read_text()

    tensor = open_gguf(rich_path).native_tensor("norm")
    assert mapped()
    del tensor
    gc.collect()
    assert not mapped()


@pytest.mark.parametrize("name", NATIVE)
def test_native_tensors_have_their_dtype_shape_and_values(tmp_path: Path, name: str) -> None:
    kind = type_by_name(name)
    content = torch.arange(6).to(NATIVE[name])
    data = content.view(torch.uint8).numpy().tobytes()
    file = open_gguf(raw.File(tensors=[raw.Tensor("t", (2, 3), kind.id, data)]).write(tmp_path / "native.gguf"))
    tensor = file.native_tensor("t")
    assert tensor.dtype == NATIVE[name]
    assert torch.equal(tensor, content.view(3, 2))


def test_wrong_names_and_quantised_tensors_are_refused(rich_path: Path) -> None:
    file = open_gguf(rich_path)
    with pytest.raises(GgufKeyError, match="tensor 'absent': no such tensor"):
        file.tensor_bytes("absent")
    with pytest.raises(GgufKeyError, match="tensor 'linear': a Q8_0 tensor has no torch dtype"):
        file.native_tensor("linear")


def pages(path: Path, kind: str) -> int:
    """KiB of one kind that this process has of a mapped file."""
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith(f"{kind}:"):
            total += int(line.split()[1])
    return total


@linux
def test_pages_are_those_of_the_file_until_they_are_written(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    file = raw.File(tensors=[raw.Tensor("big", (len(data) // 4,), raw.F32, data)])
    path = file.write(tmp_path / "big.gguf")
    stored = open_gguf(path).tensor_bytes("big")
    assert int(stored.sum()) == sum(range(256)) * 4096
    assert pages(path, "Rss") >= 1024
    assert pages(path, "Anonymous") == 0
    stored[:8192] = 0
    assert 8 <= pages(path, "Anonymous") <= 12


@linux
def test_a_file_larger_than_memory_and_swap_can_be_mapped(tmp_path: Path) -> None:
    sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    memory_bytes = sum(int(sizes[key].split()[0]) << 10 for key in ("MemTotal", "SwapTotal"))
    rows = 2 * memory_bytes // (4 << 20)
    file = raw.File(tensors=[raw.Tensor("huge", (1 << 20, rows), raw.F32, b""), raw.Tensor("last")])
    file.tensors[1].offset = rows * (4 << 20)
    path = tmp_path / "huge.gguf"
    head = file.head()
    with path.open("wb") as out:
        out.write(head)
        out.seek(-(-len(head) // 32) * 32 + file.tensors[1].offset)
        out.write(struct.pack("<4f", 1, 2, 3, 4))
    huge = open_gguf(path)
    assert huge.native_tensor("last").tolist() == [1, 2, 3, 4]
    assert huge.native_tensor("huge")[-1, -1] == 0


def test_reading_a_header_imports_neither_gguf_nor_transformers(rich_path: Path) -> None:
    script = (
        "import sys; from gguf_loader import open_gguf; open_gguf(sys.argv[1]);"
        "print([name for name in ('gguf', 'transformers', 'sentencepiece', 'triton') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script, str(rich_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
