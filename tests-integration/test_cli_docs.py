"""What docs/commands.md and the README of comfy-nodes show is what the command prints."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_gguf import write_hollow_gguf
from cli_testing import transformer_shapes, write_header
from safetensors.torch import save_file

from comfy_nodes.cli import main
from comfy_nodes.cli._parser import build_parser

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("docs/commands.md", "packages/comfy-nodes/README.md")


def transcripts() -> Iterator[tuple[str, str]]:
    """Each command shown in a console block, with the output shown below it."""
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```console\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE)


def gguf_type(name: str) -> str:
    """A mix as llama.cpp's quantiser makes it: norms and biases whole, some matrices finer than the rest."""
    if name.endswith("bias") or "norm" in name:
        return "F32"
    return "F16" if name.startswith("embed") else "Q6_K" if "down" in name else "Q4_K"


MY_MODEL = """
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MyTransformer(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that the pages talk about; those in files are 60 blocks that are nothing but holes."""
    folder = tmp_path_factory.mktemp("docs")
    write_header(folder / "model.safetensors", transformer_shapes(60, 3900), body=True)
    write_hollow_gguf(folder / "model-Q4_K.gguf", transformer_shapes(60, 3840), gguf_type)
    generator = torch.Generator().manual_seed(0)
    small = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in transformer_shapes(6, 256).items()}
    save_file({name: weight.bfloat16() for name, weight in small.items()}, folder / "small.safetensors")
    commands = (REPOSITORY / "docs/commands.md").read_text(encoding="utf-8")
    (probe,) = re.findall(r"^```python\n(def probe.*?)^```$", commands, flags=re.MULTILINE | re.DOTALL)
    (folder / "my_model.py").write_text(MY_MODEL + probe, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("command", "output"), [pytest.param(*pair, id=pair[0][:60]) for pair in transcripts()])
def test_the_page_shows_what_is_printed(
    command: str, output: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    name, *words = shlex.split(command)
    assert name == "torchspan"
    main(words)
    captured = capsys.readouterr()
    assert captured.out + captured.err == output


def test_there_are_transcripts_to_check() -> None:
    assert {shlex.split(command)[1] for command, _ in transcripts()} == {
        "explain",
        "plan",
        "gguf",
        "pack",
        "unpack",
        "sp",
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_can_be_typed(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?(?:uv run )?torchspan (?!\w+:)(.*)$", text, flags=re.MULTILINE)
    assert lines
    for line in lines:
        build_parser().parse_args(shlex.split(line, comments=True))


def test_the_page_names_every_option_of_plan() -> None:
    text = (REPOSITORY / "docs/commands.md").read_text(encoding="utf-8")
    parser = build_parser()
    usage = parser.parse_args(["plan", "FILE"])
    for option in vars(usage):
        if option not in ("file", "name", "run"):
            assert f"--{option.replace('_', '-')}" in text, option
