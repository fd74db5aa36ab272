"""Laws of the command tree: nothing disappears by accident, help teaches, wrong words are told apart from refusals."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import get_args

import pytest

import device_placement
from comfy_nodes.cli import _explain, _parser
from comfy_nodes.cli._exit import CommandError, ExitCode, exits_with
from comfy_nodes.cli._main import main
from device_placement.packed import Pack

COMMANDS = (
    "demo",
    "plan",
    "gguf",
    "gguf info",
    "pack",
    "unpack",
    "sp",
    "sp derive",
    "sp check",
    "devices",
    "explain",
    "link",
    "doctor",
)

OPTIONS = {
    "demo": {
        "--help", "--out", "--gguf", "--steps", "--blocks", "--spec", "--link", "--no-svg", "--keep-model",
        "--policy", "--slots", "--workers",
    },
    "plan": {
        "--help", "--prefix", "--spec", "--compute", "--virtual-ram-gb", "--donor", "--device", "--link", "--policy",
        "--slots", "--compute-seconds", "--json", "--svg", "--pack", "--packed-ratio", "--decode-gbps",
    },
    "gguf": {"--help"},
    "gguf info": {"--help", "--json", "--metadata"},
    "pack": {"--help", "--out", "--on"},
    "unpack": {"--help", "--out", "--on"},
    "sp": {"--help"},
    "sp derive": {"--help", "--out", "--allow-branches"},
    "sp check": {"--help"},
    "devices": {"--help", "--json"},
    "explain": {"--help", "--model-size", "--compute", "--device"},
    "link": {"--help", "--comfyui", "--remove"},
    "doctor": {"--help", "--comfyui", "--json"},
}  # fmt: skip
"""Frozen: scripts of people use these words."""


def subparsers(parser: argparse.ArgumentParser | None = None, above: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command by the words that it is called by, those below others included."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in (parser or _parser.build_parser())._actions:
        for name, below in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            found |= {f"{above}{name}": below, **subparsers(below, f"{above}{name} ")}
    return found


def help_of(command: str) -> str:
    return subparsers()[command].format_help()


def examples_of(text: str) -> Iterator[list[str]]:
    """The words of each example in a help text, after `torchspan`."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if line.startswith("  torchspan "):
            words = shlex.split(line.partition(" > ")[0])
            yield words[1:]


def test_the_commands_are_frozen() -> None:
    assert tuple(subparsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_are_frozen(command: str) -> None:
    options = {
        max(action.option_strings, key=len) for action in subparsers()[command]._actions if action.option_strings
    }
    assert options == OPTIONS[command]


def test_the_choices_are_those_of_the_planner() -> None:
    assert get_args(device_placement.Policy) == _parser.POLICIES
    assert get_args(Pack) == _parser.PACKS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_fits_a_terminal(command: str) -> None:
    parser = subparsers()[command]
    assert parser.description is not None
    assert all(len(line) <= 80 for line in parser.description.splitlines())
    for action in parser._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_in_the_help_can_be_typed(command: str) -> None:
    examples = list(examples_of(help_of(command)))
    assert len(examples) >= 2
    for words in examples:
        options = _parser.build_parser().parse_args(words)
        assert options.name.startswith(f"torchspan {command}")


def test_the_main_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        if " " not in command:
            assert f"\n    {command} " in text
    for code in (ExitCode.OK, ExitCode.REFUSED, ExitCode.USAGE):
        assert f"\n  {code.value}  " in text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"torchspan {version('comfy-nodes')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["plam"], "invalid choice: 'plam'"),
        (["plan"], "FILE"),
        (["plan", "f", "--policy", "best"], "invalid choice: 'best'"),
        (["plan", "f", "--device", "cuda:0"], "write NAME=TOTAL"),
        (["plan", "f", "--link", "cpu"], "write SOURCE=GBPS"),
        (["plan", "f", "--slots", "0"], "no whole number above 0"),
        (["plan", "f", "--compute-seconds", "0"], "no number above 0"),
        (["plan", "f", "--json", "--svg", "x.svg"], "not allowed with"),
        (["explain"], "SPEC"),
        (["gguf"], "COMMAND"),
        (["gguf", "info"], "FILE"),
        (["sp"], "COMMAND"),
        (["sp", "derive", "a:b"], "--out"),
        (["sp", "check", "plan.json"], "MODULE:FUNCTION"),
        (["demo", "--gguf", "Q4_K"], "invalid choice: 'Q4_K'"),
        (["demo", "--steps", "none"], "no whole number above 0"),
    ],
)
def test_wrong_words_end_with_2_and_a_reason(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == ExitCode.USAGE
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_what_an_option_refuses_is_named_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "f", "--device", "cuda:0=24gx"])
    assert "argument --device: '24gx' is no size; write a number and its unit" in capsys.readouterr().err


def test_only_the_named_errors_become_sentences() -> None:
    with pytest.raises(CommandError, match="for people") as told, exits_with(ExitCode.USAGE, LookupError):
        raise KeyError("for people")
    assert told.value.exit_code is ExitCode.USAGE
    with pytest.raises(ZeroDivisionError), exits_with(ExitCode.USAGE, LookupError):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["plan", "--help"],
        ["gguf", "info", "--help"],
        ["--version"],
        ["explain", "cuda:0,2gb;cpu,*"],
        ["plan", "f", "--slots", "x"],
    ],
)
def test_light_commands_do_not_load_torch(words: list[str]) -> None:
    program = f"""
import sys
from comfy_nodes.cli import main
try:
    main({words!r})
except SystemExit:
    pass
heavy = {{"torch", "numpy", "safetensors", "gguf", "gguf_loader", "block_discovery", "device_placement"}}
heavy &= set(sys.modules)
sys.exit(f"loaded {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def run_instead(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `torchspan explain` raise `error`."""

    def fail(options: argparse.Namespace) -> ExitCode:
        print("something was printed before")
        raise error

    monkeypatch.setattr(_explain, "run", fail)


def test_a_refusal_keeps_its_exit_code_and_follows_what_was_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_instead(monkeypatch, CommandError("too small; free some memory"))
    assert main(["explain", "x"]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert captured.out == "something was printed before\n"
    assert captured.err == "torchspan explain: too small; free some memory\n"


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_instead(monkeypatch, KeyboardInterrupt())
    assert main(["explain", "x"]) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "torchspan explain: interrupted\n"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    run_instead(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["explain", "x"])
