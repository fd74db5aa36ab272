"""Laws of `torchspan explain`: the words are alloc-spec's, the bytes too, and each wrong way has its exit code."""

from __future__ import annotations

import pytest

import alloc_spec
from comfy_nodes.cli import main
from comfy_nodes.cli._exit import ExitCode

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
    assert out.endswith("\n\n" + budget.explain() + "\n")
    assert "2.5 GiB" in out


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
