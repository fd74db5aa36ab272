"""`torchspan pack` and `unpack`: there and back bit for bit, planned with packed bytes, refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_testing import transformer_shapes, write_header
from safetensors.torch import load_file, save_file

from comfy_nodes.cli import main
from comfy_nodes.cli._source import read_model

MACHINE = ["--device", "cuda:0=24gb,22gb", "--device", "cpu=64gb", "--link", "cpu=25"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    shapes = transformer_shapes(2, 160, prefix="model.")
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    return tmp_path / "m.safetensors"


def test_packed_and_unpacked_it_is_the_same_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(model), "--on", "cpu"]) == 0
    packed = model.with_name("m.w3.safetensors")
    said = capsys.readouterr().out
    assert f"packing {model} on cpu {'.' * 20}\n" in said
    assert "12 of 17 tensors packed, 1.21 MiB -> 883 KiB (71.2 %)" in said
    assert packed.stat().st_size < 0.74 * model.stat().st_size
    assert main(["unpack", str(packed), "-o", str(model.with_name("again.safetensors"))]) == 0
    assert "12 of 17 tensors unpacked" in capsys.readouterr().out
    before, after = load_file(model), load_file(model.with_name("again.safetensors"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int16), after[name].view(torch.int16)) for name in before)


def test_a_packed_file_is_planned_with_its_packed_bytes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pack", str(model)])
    packed = model.with_name("m.w3.safetensors")
    dense_tree, _ = read_model(model, None)
    tree, warnings = read_model(packed, None)
    assert warnings == []
    assert [(unit.path, unit.kind) for unit in tree.units] == [(unit.path, unit.kind) for unit in dense_tree.units]
    names = [[tensor.name for tensor in unit.tensors] for unit in tree.units]
    assert names == [[tensor.name for tensor in unit.tensors] for unit in dense_tree.units]
    assert tree.size_bytes < 0.74 * dense_tree.size_bytes
    assert main(["plan", str(packed), "--spec", "cuda:0,50%;cpu,*", *MACHINE]) == 0
    assert "blocks" in capsys.readouterr().out


def test_the_default_name_of_the_unpacked_file_is_that_of_the_source(model: Path) -> None:
    main(["pack", str(model)])
    model.rename(model.with_name("kept"))
    assert main(["unpack", str(model.with_name("m.w3.safetensors"))]) == 0
    assert load_file(model).keys() == load_file(model.with_name("kept")).keys()


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_what_cannot_be_done_is_refused_with_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = model.with_name("m.w3.safetensors")
    assert "not packed; there is nothing to unpack" in refusal(capsys, "unpack", model, "-o", model.with_name("new"))
    main(["pack", str(model)])
    assert "is packed already" in refusal(capsys, "pack", packed)
    assert "exists; choose another name" in refusal(capsys, "pack", model)
    assert "exists; choose another name" in refusal(capsys, "unpack", packed)
    assert "there is no folder" in refusal(capsys, "pack", model, "-o", model.parent / "absent" / "m")
    assert "no such file" in refusal(capsys, "pack", model.with_name("absent.safetensors"))
    assert "device 'cuda:77' cannot be used here" in refusal(capsys, "pack", model, "-o", "x", "--on", "cuda:77")
    raw = bytearray(packed.read_bytes())
    raw[-(1 << 18)] ^= 1
    packed.write_bytes(raw)
    assert "is damaged" in refusal(capsys, "unpack", packed, "-o", model.with_name("new"))
    assert not model.with_name("new").exists()


def test_a_file_in_which_nothing_gets_smaller_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.zeros(4, 4)}, tmp_path / "m.safetensors")
    assert main(["pack", str(tmp_path / "m.safetensors")]) == 0
    assert "no tensor got smaller" in capsys.readouterr().out


def test_a_plan_with_packed_units_says_what_it_packs_and_assumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.safetensors"
    write_header(model, transformer_shapes(6, 160), body=True)
    words = ["plan", str(model), "--spec", "cuda:0,300kb;cpu,*", *MACHINE[:4], "--link", "cpu=0.001"]
    assert main([*words, "--pack", "auto", "--compute-seconds", "0.01"]) == 0
    said = capsys.readouterr().out.splitlines()[-4:]
    assert said[0].startswith("packed: 6 of 6 units, 3.52 MiB of bf16 in ")
    assert said[2].startswith("auto: a forward takes ")
    assert said[3] == "ratio 0.71 (assumed), decoding at 300 GB/s (assumed, not measured on this device)"
    assert main([*words, "--pack", "always", "--packed-ratio", "0.7", "--decode-gbps", "500", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packing"]["units"] == [f"blocks.{index}" for index in range(6)]
    assert document["packing"]["packed_bytes"] == pytest.approx(0.7 * document["packing"]["dense_bytes"], rel=1e-3)
    assert "ratio 0.7 (given), decoding at 500 GB/s (given)" in document["packing"]["explanation"]
    assert main(words) == 0
    assert "packed:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--pack", "auto"], "--pack auto weighs decoding against the link; add --compute-seconds"),
        (["--packed-ratio", "0.7"], "--packed-ratio is about packed units; add --pack always"),
        (["--decode-gbps", "500"], "--decode-gbps is about packed units; add --pack always"),
    ],
)
def test_words_about_packing_that_go_nowhere_are_refused(
    words: list[str], reason: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(model), *MACHINE, *words]) == 2
    assert reason in capsys.readouterr().err
