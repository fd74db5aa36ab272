"""Laws of GGUF in the command: planned like any other file, described completely, refused by name when damaged."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_gguf import write_gguf, write_twins
from cli_testing import transformer_shapes

from comfy_nodes.cli import main
from comfy_nodes.cli._exit import CommandError, ExitCode
from comfy_nodes.cli._source import read_model
from device_placement import PlacementPlan
from gguf_loader import read_header, type_by_name

MACHINE = ["--device", "cuda:0=24gb,22gb", "--device", "cpu=64gb", "--link", "cpu=25"]
SPEC = ["--spec", "cuda:0,25%;cpu,*"]
SHAPES = transformer_shapes(6, 64)


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in transformer_shapes(6, 64, prefix=prefix).items()
    }


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    return write_twins(tmp_path, weights())


def planned(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> PlacementPlan:
    assert main(["plan", str(file), *SPEC, *MACHINE, *words, "--json"]) == ExitCode.OK
    return PlacementPlan.from_json(json.dumps(json.loads(capsys.readouterr().out)["plan"]))


def described(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> dict[str, Any]:
    assert main(["gguf", "info", str(file), *words, "--json"]) == ExitCode.OK
    document: dict[str, Any] = json.loads(
        capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    return document


def test_twins_have_the_same_units(twins: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the names, which safetensors sorts; only blocks have an order of their own."""
    plain, quantised = (planned(capsys, file) for file in twins)
    contents = [
        {unit.path: {home.name for home in unit.homes} for unit in placement.units} for placement in (plain, quantised)
    ]
    assert contents[0] == contents[1]
    blocks = [[unit.path for unit in placement.units if unit.kind == "block"] for placement in (plain, quantised)]
    assert blocks[0] == blocks[1] == [f"blocks.{index}" for index in range(6)]
    assert quantised.donors == plain.donors


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0"])
def test_the_plan_counts_packed_bytes(type_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placement = planned(capsys, write_gguf(tmp_path / "model.gguf", weights(), type_name))
    kind = type_by_name(type_name)
    homes = {home.name: home.size_bytes for unit in placement.units for home in unit.homes}
    assert homes == {
        name: kind.size_bytes(math.prod(shape)) if len(shape) == 2 else 4 * math.prod(shape)
        for name, shape in SHAPES.items()
    }
    assert 0.2 < placement.bytes_on("cuda:0") / placement.size_bytes <= 0.25


def test_the_tables_are_those_of_any_file(twins: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    titles = []
    for file in twins:
        assert main(["plan", str(file), *SPEC, *MACHINE, "--svg", str(file.with_suffix(".svg"))]) == ExitCode.OK
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "no weight was read" in captured.out
        titles.append(re.findall(r"=+ (.*) =+", captured.out))
        assert file.with_suffix(".svg").read_text().startswith("<svg")
    assert titles[0] == titles[1]


def test_what_all_names_share_is_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    below = write_gguf(tmp_path / "below.GGUF", weights("model.diffusion_model."))
    names = {home.name for unit in planned(capsys, below).units for home in unit.homes}
    assert names == set(SHAPES)
    assert described(capsys, below)["prefix"] == "model.diffusion_model."


def test_a_prefix_selects_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "both.gguf", {**weights("unet."), "vae.out.weight": torch.ones(4, 64)})
    names = {home.name for unit in planned(capsys, file, "--prefix", "unet.").units for home in unit.homes}
    assert names == set(SHAPES)
    with pytest.raises(CommandError, match=r"both\.gguf: .*'clip\.'"):
        read_model(file, "clip.")


def test_a_name_that_is_no_module_path_is_refused_with_its_file(tmp_path: Path) -> None:
    deep = {"b": torch.ones(4), "a." * 60 + "b": torch.ones(4)}
    assert read_model(write_gguf(tmp_path / "deep.gguf", deep), None)[0].size_bytes == 32
    deeper = write_gguf(tmp_path / "deeper.gguf", {**deep, "a." * 120 + "b": torch.ones(4)})
    with pytest.raises(CommandError, match=r"deeper\.gguf: .*more than 100 components"):
        read_model(deeper, None)


@pytest.mark.parametrize("words", [["plan"], ["gguf", "info"]], ids=["plan", "info"])
@pytest.mark.parametrize("kept", ["nothing", "magic", "header", "all but one tensor"])
def test_a_file_that_ends_early_is_refused_by_name(
    words: list[str], kept: str, twins: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = twins[1]
    content = file.read_bytes()
    header_bytes = read_header(file).data_offset_bytes
    ends = {"nothing": 0, "magic": 4, "header": header_bytes, "all but one tensor": len(content) - 4096}
    file.write_bytes(content[: ends[kept]])
    assert main([*words, str(file)]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"torchspan {' '.join(words)}: {file}: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("words", [["plan"], ["gguf", "info"]], ids=["plan", "info"])
def test_what_is_no_gguf_file_is_refused_by_name(
    words: list[str], twins: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = twins[0].rename(tmp_path / "renamed.gguf")
    for path, message in ((renamed, "magic"), (tmp_path / "absent.gguf", "no such file"), (tmp_path, str(tmp_path))):
        assert main([*words, str(path)]) == ExitCode.REFUSED
        captured = capsys.readouterr()
        assert captured.out == ""
        assert str(path) in captured.err
        assert message in captured.err


def test_the_mix_adds_up_to_the_file(twins: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    document = described(capsys, twins[1])
    by_type = {share["type"]: share for share in document["types"]}
    assert list(by_type) == ["Q8_0", "F32"]
    assert by_type["Q8_0"]["bits_a_weight"] == 8.5
    assert by_type["F32"]["bits_a_weight"] == 32
    assert sum(share["weights"] for share in by_type.values()) == sum(math.prod(shape) for shape in SHAPES.values())
    assert sum(share["tensors"] for share in by_type.values()) == document["tensors"] == len(SHAPES)
    size_bytes = sum(share["size_bytes"] for share in by_type.values())
    assert size_bytes == sum(group["size_bytes"] for group in document["blocks"])
    assert 0 < document["file_bytes"] - size_bytes < 8192
    assert document["file_bytes"] == twins[1].stat().st_size


def test_blocks_are_grouped_by_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "model.gguf", {**weights(), "scale": torch.ones(1)})
    groups = {group["path"]: group for group in described(capsys, file)["blocks"]}
    assert groups["blocks.*"]["units"] == 6
    assert groups["blocks.*"]["tensors"] == 42
    assert groups[""] == {"path": "", "units": 1, "tensors": 1, "size_bytes": 4}
    assert set(groups) == {"blocks.*", "embed", "head", ""}
    assert main(["gguf", "info", str(file)]) == ExitCode.OK
    assert re.search(r"^outside of blocks +1 +1 +4 bytes$", capsys.readouterr().out, flags=re.MULTILINE)


METADATA = {
    "general.name": "A model",
    "test.epsilon": 1e-5,
    "test.count": 7,
    "test.nothing": math.nan,
    "test.long": "x" * 500,
    "test.lines": "one\ntwo",
    "tokenizer.ggml.tokens": [f"t{index}" for index in range(1000)],
    "test.numbers": [1, 2],
    "test.floats": [0.5, math.inf],
}


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "annotated.gguf", weights(), metadata=METADATA)


def test_metadata_is_complete_typed_and_short(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = described(capsys, annotated, "--metadata")
    assert (document["architecture"], document["name"]) == ("flux", "A model")
    metadata = document["metadata"]
    assert document["metadata_count"] == len(metadata) == len(METADATA) + 1
    assert metadata["test.epsilon"] == {"type": "FLOAT32", "value": 1e-5}
    assert metadata["test.count"] == {"type": "UINT32", "value": 7}
    assert metadata["test.nothing"] == {"type": "FLOAT32", "value": "NaN"}
    assert metadata["test.long"]["value"] == "x" * 500
    assert metadata["tokenizer.ggml.tokens"] == {"type": "STRING[]", "count": 1000, "first": ["t0", "t1", "t2", "t3"]}
    assert metadata["test.numbers"] == {"type": "INT32[]", "count": 2, "first": [1, 2]}
    assert metadata["test.floats"]["first"] == [0.5, "inf"]


def test_the_tables_say_the_same(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gguf", "info", str(annotated), "--metadata"]) == ExitCode.OK
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{annotated}: architecture flux, named 'A model'\nGGUF version 3, ")
    for pattern in (
        r"^Q8_0 +\d+ +[\d,]+ +[\d.]+ KiB +\d+\.\d % +8\.50$",
        r"^F32 .* 32\.00$",
        r"^together .* 100\.0 % ",
        r"^blocks\.\* +6 +42 +",
        r"^embed +1 +2 +",
        r"^test\.epsilon +FLOAT32 +1e-05$",
        r"^test\.lines +STRING +one two$",
        r"^test\.long +STRING +x{77}\.\.\.$",
        r"^tokenizer\.ggml\.tokens +STRING\[\] +1000 values: 't0', 't1', 't2', 't3', \.\.\.$",
        r"^test\.numbers +INT32\[\] +2 values: 1, 2$",
    ):
        assert re.search(pattern, captured.out, flags=re.MULTILINE), (pattern, captured.out)
    assert all(len(line) <= 130 for line in captured.out.splitlines()[1:])


def test_metadata_is_only_counted_unless_asked_for(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "metadata" not in described(capsys, annotated)
    assert main(["gguf", "info", str(annotated)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"{len(METADATA) + 1} values; --metadata lists them" in out
    assert "test.epsilon" not in out


def test_tokens_that_are_no_text_are_shown_as_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "bytes.gguf", weights(), metadata={"tokens": ["ab", "cd"]})
    file.write_bytes(
        file.read_bytes().replace(b"\x02\x00\x00\x00\x00\x00\x00\x00ab", b"\x02\x00\x00\x00\x00\x00\x00\x00\xff\xfe")
    )
    assert described(capsys, file, "--metadata")["metadata"]["tokens"]["first"] == ["\\xff\\xfe", "cd"]


def test_a_vocabulary_alone_is_described_but_cannot_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "vocabulary.gguf", {}, architecture="llama", metadata={"tokens": ["a", "b"]})
    document = described(capsys, file)
    assert (document["tensors"], document["types"], document["blocks"]) == (0, [], [])
    assert main(["gguf", "info", str(file)]) == ExitCode.OK
    assert "none: the file has no tensors" in capsys.readouterr().out
    assert main(["plan", str(file), *SPEC, *MACHINE]) == ExitCode.REFUSED
    assert "vocabulary.gguf: " in capsys.readouterr().err


def test_a_name_that_is_no_text_does_not_hinder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "odd.gguf", weights(), metadata={"general.name": 7})
    assert described(capsys, file)["name"] is None
    assert main(["gguf", "info", str(file)]) == ExitCode.OK
    assert capsys.readouterr().out.startswith(f"{file}: architecture flux\n")


def test_who_has_no_gguf_file_does_not_load_its_reader(twins: tuple[Path, Path]) -> None:
    program = f"""
import sys
from comfy_nodes.cli import main
from comfy_nodes.cli.demo._file import safetensors_file
safetensors_file()
code = main({["plan", str(twins[0]), *SPEC, *MACHINE]!r})
sys.exit(code or ", ".join({{"gguf", "gguf_loader"}} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_gguf_header_is_read_without_the_gguf_package(twins: tuple[Path, Path]) -> None:
    """Its import takes longer than reading a vocabulary."""
    program = f"""
import sys
from comfy_nodes.cli import main
code = main(["gguf", "info", {str(twins[1])!r}]) or main({["plan", str(twins[1]), *SPEC, *MACHINE]!r})
sys.exit(code or ("gguf was loaded" if "gguf" in sys.modules else 0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
