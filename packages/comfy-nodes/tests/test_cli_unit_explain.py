"""Laws of `torchspan explain`: the words are alloc-spec's, the bytes too, and each wrong way has its exit code."""

from __future__ import annotations

import re

import pytest

import alloc_spec
from block_discovery import discover_names
from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode
from device_placement import Device, Hardware, Link, plan

GIB = 1 << 30
MACHINE = ["--device", "cuda:0=24gb", "--device", "cpu=64gb"]


@pytest.mark.parametrize("spec", ["cuda:0,2.5gb;cpu,*", "cuda:0,8%;cpu,4%", "#cuda:0;4;cpu", "cuda:0,free-1gb;cpu,*"])
def test_the_words_are_those_of_alloc_spec(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", spec]) == ExitCode.OK
    assert capsys.readouterr().out == alloc_spec.explain(spec) + "\n"


def test_a_model_size_and_devices_give_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cuda:0,25%;cpu,*", "--model-size", "10gb", *MACHINE]) == ExitCode.OK
    out = capsys.readouterr().out
    budget = alloc_spec.resolve(
        alloc_spec.parse("cuda:0,25%;cpu,*"),
        model_bytes=10 * GIB,
        devices={
            "cuda:0": alloc_spec.DeviceMemory(total=24 * GIB, free=24 * GIB),
            "cpu": alloc_spec.DeviceMemory(total=64 * GIB, free=64 * GIB),
        },
        compute_device="cuda:0",
    )
    slots = "slots for streaming to cuda:0 come on top; torchspan plan counts them, from a model's file\n"
    assert out.endswith(f"\n\n{budget.explain()}\n{slots}")
    assert "2.5 GiB" in out


def test_a_model_that_stays_where_it_computes_streams_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cuda:0,*", "--model-size", "10gb", *MACHINE]) == ExitCode.OK
    assert "slots" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked", ["cuda:0,20gb;cpu,*", "cuda:0,*;cpu,1gb", "#cuda:0;1;cpu", "cuda:0,90%;cpu,10%", "cuda:0,0.9;cpu,1mb"]
)
def test_what_it_advises_can_be_planned_with_slots(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not know the slots; so it leaves the device that computes to the planner."""
    devices = ["--device", "cuda:0=16gb", "--device", "cpu=64gb"]
    assert main(["explain", asked, "--model-size", "20gb", *devices]) == ExitCode.REFUSED
    advised = re.findall(r'this would fit: "(.+)"', capsys.readouterr().err)
    assert len(advised) == 1
    tree = discover_names({f"blocks.{i}.{j}.weight": ((1 << 27,), "bfloat16") for i in range(40) for j in range(2)})
    assert tree.size_bytes == 20 * GIB
    hardware = Hardware(
        compute="cuda:0",
        devices=(
            Device(name="cuda:0", total_bytes=16 * GIB, free_bytes=16 * GIB),
            Device(name="cpu", total_bytes=64 * GIB, free_bytes=64 * GIB),
        ),
        links=(Link(source="cpu", target="cuda:0", gb_per_second=12.0),),
    )
    assert plan(tree, advised[0], hardware).compute_peak_bytes <= 16 * GIB


def test_free_memory_is_what_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "cuda:0,free-1gb;cpu,*", "--model-size", "10gb"]
    assert main([*words, "--device", "cuda:0=24gb,4gb", "--device", "cpu=64gb"]) == ExitCode.OK
    assert "3221225472 bytes" in capsys.readouterr().out


def test_the_device_that_takes_the_rest_is_found_from_the_compute_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cpu,4gb", "--model-size", "10gb", *MACHINE]) == ExitCode.OK
    assert "cuda:0  6 GiB   60.0 %  6442450944 bytes  (computes)" in capsys.readouterr().out


def test_a_text_that_cannot_be_read_ends_with_2_and_a_caret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cuda:0,2gb,cpu,*"]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("torchspan explain: expected ';'")
    assert "\n              ^\n" in captured.err
    assert 'did you mean "cuda:0,2gb;cpu,*"?' in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cuda:9,2gb;cpu,*", "--model-size", "10gb", *MACHINE], 'no device "cuda:9" here'),
        (["cuda:0,*", "--model-size", "30gb", *MACHINE], "are missing"),
        (["#cuda:0;100;cpu", "--model-size", "10gb", *MACHINE], "the model has only"),
        (["cuda:0,1gb;cpu,*#cuda:0", "--model-size", "10gb", "--compute", "cpu", *MACHINE], "computes on"),
    ],
)
def test_what_the_devices_do_not_allow_ends_with_1(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words]) == ExitCode.REFUSED
    assert message in capsys.readouterr().err


def test_the_word_that_leaves_the_choice_is_explained_by_what_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "auto"]) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "`torchspan plan FILE` shows it" in told
    (offered,) = re.findall(r'is "(.+)"', told)
    assert main(["explain", offered]) == ExitCode.OK


def test_only_where_this_machine_was_asked_another_one_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "xpu:7,1kb;cpu,*", "--model-size", "1mb"]
    assert main(words) == ExitCode.REFUSED
    assert "`torchspan devices` says what this machine has and why" in capsys.readouterr().err
    assert main([*words, *MACHINE]) == ExitCode.REFUSED
    told = capsys.readouterr().err
    assert 'no device "xpu:7" here' in told
    assert "torchspan devices" not in told


@pytest.mark.parametrize("words", [MACHINE, ["--compute", "cuda:0"]])
def test_devices_without_a_model_are_a_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cuda:0,2gb", *words]) == ExitCode.USAGE
    assert "add --model-size" in capsys.readouterr().err


def test_a_device_given_twice_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "cpu,*", "--model-size", "1gb", "--device", "cpu=2gb", "--device", "CPU=4gb"]
    assert main(words) == ExitCode.USAGE
    assert "--device cpu is given twice" in capsys.readouterr().err


def test_without_devices_this_machine_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cpu,*", "--model-size", "1kb"]) == ExitCode.OK
    assert "1024 bytes" in capsys.readouterr().out
