"""Laws of `torchspan plan`: a header is enough, words that contradict are told apart from what cannot be done."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from cli_testing import transformer_shapes, write_header

from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode
from device_placement import Estimate, Hardware, PlacementPlan

GIB = 1 << 30
MACHINE = ["--device", "cuda:0=24gb,22gb", "--device", "cpu=64gb", "--link", "cpu=25"]
SPEC = ["--spec", "cuda:0,25%;cpu,*"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model of 24 blocks, 13.5 GiB, of which only the header exists."""
    path = tmp_path / "model.safetensors"
    write_header(path, transformer_shapes(24, 5000))
    return path


def planned(capsys: pytest.CaptureFixture[str], *words: str | Path) -> PlacementPlan:
    """The plan that `torchspan plan --json` prints."""
    assert main(["plan", *map(str, words), "--json"]) == ExitCode.OK
    return PlacementPlan.from_json(json.dumps(json.loads(capsys.readouterr().out)["plan"]))


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Exit code and reason of a command that does not print anything else."""
    code = main(["plan", *map(str, words)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("torchspan plan: ")
    return code, captured.err


def test_a_header_is_enough_and_its_missing_body_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), *SPEC, *MACHINE]) == ExitCode.OK
    captured = capsys.readouterr()
    assert "24 blocks" in captured.out
    assert "cuda:0 holds 25 % of the model" in captured.out
    for title in ("Device allocation", "Layer distribution", "Final assignment"):
        assert title in captured.out
    assert captured.err.startswith(f"warning: {file} ends 13.4")
    assert captured.err.count("\n") == 1


def test_a_complete_file_has_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "whole.safetensors"
    write_header(path, transformer_shapes(8, 64), body=True)
    assert main(["plan", str(path), *SPEC, *MACHINE]) == ExitCode.OK
    assert capsys.readouterr().err == ""


def test_json_is_the_whole_answer_and_can_be_read_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), *SPEC, *MACHINE, "--compute-seconds", "2", "--json"]) == ExitCode.OK
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert set(document) == {"file", "model_bytes", "spec", "hardware", "plan", "estimate", "warnings"}
    placement = PlacementPlan.from_json(json.dumps(document["plan"]))
    estimate = Estimate.from_json(json.dumps(document["estimate"]))
    hardware = Hardware.from_json(json.dumps(document["hardware"]))
    assert placement.size_bytes == document["model_bytes"] == sum(map(placement.bytes_on, ("cuda:0", "cpu")))
    assert hardware.link("cpu", "cuda:0").gb_per_second == 25
    assert estimate.compute_seconds == pytest.approx(2)
    assert any("before its header says" in warning for warning in document["warnings"])


def test_an_allocation_is_kept(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placement = planned(capsys, file, *SPEC, *MACHINE)
    largest_unit = max(unit.size_bytes for unit in placement.units)
    assert 0 <= placement.size_bytes / 4 - placement.bytes_on("cuda:0") <= largest_unit


def test_the_simple_controls_move_at_least_what_was_asked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placement = planned(capsys, file, "--compute", "cuda:0", "--virtual-ram-gb", "8", "--donor", "cpu", *MACHINE)
    largest_unit = max(unit.size_bytes for unit in placement.units)
    assert 0 <= placement.bytes_on("cpu") - 8 * GIB <= largest_unit


def test_the_donor_is_the_cpu_unless_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, file, "--virtual-ram-gb", "4", *MACHINE) == planned(
        capsys, file, "--virtual-ram-gb", "4", "--donor", "cpu", *MACHINE
    )


def test_several_donors_are_filled_in_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--virtual-ram-gb", "4", "--donor", "cuda:1,cpu", "--device", "cuda:1=3gb"]
    placement = planned(capsys, file, *words, *MACHINE, "--compute", "cuda:0")
    assert placement.donors == ("cuda:1", "cpu")
    assert 0 < placement.bytes_on("cpu") < placement.bytes_on("cuda:1") <= 3 * GIB


def test_without_an_allocation_as_much_stays_as_fits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = planned(capsys, file, *MACHINE)
    assert everything.bytes_on("cuda:0") == everything.size_bytes
    part = planned(capsys, file, "--device", "cuda:0=10gb,8gb", "--device", "cpu=64gb")
    assert part.bytes_on("cuda:0") < part.compute_peak_bytes <= 8 * GIB
    assert part.compute_peak_bytes > 7 * GIB


def test_without_a_cpu_the_last_device_takes_the_rest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devices = ["--device", "cuda:0=8gb", "--device", "cuda:1=2gb", "--device", "cuda:2=24gb"]
    assert planned(capsys, file, *devices).bytes_on("cuda:2") > 5 * GIB


def test_a_single_device_holds_the_whole_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, file, "--device", "cpu=64gb").donors == ()


@pytest.mark.parametrize("policy", ["stripe", "interleave", "contiguous", "legacy_tail"])
def test_policy_and_slots_reach_the_planner(file: Path, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    placement = planned(capsys, file, *SPEC, *MACHINE, "--policy", policy, "--slots", "3")
    assert (placement.policy, placement.slots) == (policy, 3)


def test_compute_seconds_turn_transfers_into_seconds_a_pass(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), *SPEC, *MACHINE]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "the compute time is not known" in out
    assert "predicted slowdown of a pass that takes " in out
    assert main(["plan", str(file), *SPEC, *MACHINE, "--compute-seconds", "2"]) == ExitCode.OK
    assert " s a pass" in capsys.readouterr().out


def test_a_prefix_selects_a_part_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model = transformer_shapes(8, 512, prefix="model.diffusion_model.")
    write_header(path, {**model, "first_stage_model.decoder.weight": (512, 512)})
    placement = planned(capsys, path, "--prefix", "model.diffusion_model.", *SPEC, *MACHINE)
    names = {home.name for unit in placement.units for home in unit.homes}
    assert names == set(transformer_shapes(8, 512))


def test_a_sharded_model_is_read_through_its_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = transformer_shapes(8, 512)
    weights: dict[str, str] = {}
    for shard in range(2):
        part = {name: shape for index, (name, shape) in enumerate(shapes.items()) if index % 2 == shard}
        write_header(tmp_path / f"model-{shard}.safetensors", part)
        weights |= dict.fromkeys(part, f"model-{shard}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    placement = planned(capsys, index, *SPEC, *MACHINE)
    assert {home.name for unit in placement.units for home in unit.homes} == set(shapes)


def test_the_picture_is_svg(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "placement.svg"
    assert main(["plan", str(file), *SPEC, *MACHINE, "--svg", str(picture)]) == ExitCode.OK
    assert capsys.readouterr().out.endswith(f"\npicture: {picture}\n")
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


@pytest.mark.parametrize(
    ("target", "reason"), [("missing/placement.svg", "there is no folder"), (".", "is a folder; name a file in it")]
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_plan(
    file: Path, target: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(file), *SPEC, *MACHINE, "--svg", str(file.parent / target)]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("word", ["auto", " AUTO "])
def test_the_word_of_the_nodes_leaves_the_choice_to_the_planner(
    file: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(capsys, file, "--spec", word, *MACHINE) == planned(capsys, file, *MACHINE)


def test_a_device_of_another_machine_comes_with_the_way_to_describe_it(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, reason = refusal(capsys, file, "--spec", "cpu,1mb;xpu:7,*", "--compute", "cpu")
    assert code == ExitCode.REFUSED
    assert "there are cpu" in reason
    assert "for another machine, describe its devices: --device xpu:7=24gb --device cpu=64gb" in reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spec", "cuda:0,1gb", "--virtual-ram-gb", "4"], "--spec and --virtual-ram-gb both say"),
        (["--spec", "cuda:0,1gb", "--donor", "cpu"], "--spec and --donor both say"),
        (["--donor", "cpu"], "add --virtual-ram-gb"),
        (["--spec", "cuda:0=1gb"], 'did you mean "cuda:0,1gb"?'),
        (["--virtual-ram-gb", "4", "--donor", "c p u"], "c p u"),
        (["--virtual-ram-gb", "4", "--donor", ""], "expected a donor device"),
        (["--virtual-ram-gb", "4", "--donor", "cuda:0"], "cuda:0 computes and cannot be its own donor"),
        (["--compute", "cuda:3"], "compute device cuda:3 is not among the devices given"),
        (["--device", "cpu=1gb"], "--device cpu is given twice"),
    ],
)
def test_words_that_contradict_end_with_2(
    file: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, reason = refusal(capsys, file, *words, *MACHINE)
    assert code == ExitCode.USAGE
    assert message in reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spec", "cuda:0,*", "--device", "cuda:0=8gb", "--device", "cpu=8gb"], "are missing"),
        (["--spec", "cuda:0,4gb;cuda:1,*", *MACHINE], 'no device "cuda:1" here'),
        (["--virtual-ram-gb", "100", *MACHINE], "the model has only"),
        (["--spec", "cuda:0,1kb;cpu,*", *MACHINE], "too small"),
        (["--prefix", "nothing.", *MACHINE], "'nothing.'"),
    ],
)
def test_what_does_not_fit_ends_with_1_and_a_remedy(
    file: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["plan", str(file), *words])
    assert code == ExitCode.REFUSED
    assert message in capsys.readouterr().err


def header(text: str | bytes, *, claimed_bytes: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return (len(data) if claimed_bytes is None else claimed_bytes).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 a zip file, not a checkpoint", id="another format"),
        pytest.param(b"\x08\x00\x00", id="shorter than its first field"),
        pytest.param(header("{}", claimed_bytes=1 << 40), id="a header larger than the file"),
        pytest.param(header('{"a": {"dtype": "F32"'), id="a truncated header"),
        pytest.param(header("[1, 2]"), id="no object"),
        pytest.param(header('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}'), id="a negative size"),
        pytest.param(header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}'), id="offsets reversed"),
        pytest.param(
            header('{"a": {"dtype": "F32", "shape": [9223372036854775807, 9], "data_offsets": [0, 8]}}'),
            id="an overflowing size",
        ),
        pytest.param(header('{"a": {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}}'), id="an unknown type"),
        pytest.param(header("{}"), id="no tensors"),
    ],
)
def test_a_bad_file_is_refused_by_name(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    code, reason = refusal(capsys, path, *SPEC, *MACHINE)
    assert code == ExitCode.REFUSED
    assert "bad.safetensors" in reason


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, reason = refusal(capsys, tmp_path / "absent.safetensors", *SPEC, *MACHINE)
    assert code == ExitCode.REFUSED
    assert "absent.safetensors" in reason


def test_a_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, reason = refusal(capsys, tmp_path, *SPEC, *MACHINE)
    assert code == ExitCode.REFUSED
    assert str(tmp_path) in reason


def test_assumed_bandwidths_are_warnings(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), *SPEC, "--device", "cuda:0=24gb", "--device", "cpu=64gb"]) == ExitCode.OK
    assert "warning: link cpu -> cuda:0: 12 GB/s assumed" in capsys.readouterr().err
