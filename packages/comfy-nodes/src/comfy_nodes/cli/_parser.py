"""The command tree: what can be typed, with help that teaches. Nothing here needs torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from comfy_nodes.cli import _help
from comfy_nodes.cli._arguments import (
    read_count,
    read_device,
    read_device_name,
    read_link,
    read_positive,
    read_size,
)
from comfy_nodes.cli._exit import ExitCode

if TYPE_CHECKING:
    from device_placement import Policy
    from device_placement.packed import Pack

    # What add_subparsers returns has no public name at run time.
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], ExitCode]

POLICIES: tuple[Policy, ...] = ("stripe", "interleave", "contiguous", "legacy_tail")

PACKS: tuple[Pack, ...] = ("never", "auto", "always")

GGUF_TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4")
"""What the demo's matrices can be quantised to: what the gguf package writes in blocks that divide their rows."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `torchspan`.

    Every subcommand sets `options.name`, which errors begin with, and `options.run`, which does the work.
    """
    parser = argparse.ArgumentParser(
        prog="torchspan", description=_help.MAIN, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"torchspan {version('comfy-nodes')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(
        _command(commands, "demo", "do the main job on a small model, end to end", _help.DEMO, _later("demo._demo"))
    )
    _add_plan(
        _command(commands, "plan", "plan and predict a model from its file header alone", _help.PLAN, _later("_plan"))
    )
    _add_gguf(_command(commands, "gguf", "what a quantised file consists of", _help.GGUF))
    _add_pack(
        _command(
            commands, "pack", "store a bf16 file in about 70 %% of its bytes", _help.PACK, _later("_pack", "run_pack")
        ),
        "the new file (default: FILE with the ending .w3.safetensors)",
    )
    _add_pack(
        _command(
            commands, "unpack", "the file that was packed, bit for bit", _help.UNPACK, _later("_pack", "run_unpack")
        ),
        "the new file (default: FILE with the ending .safetensors)",
    )
    _add_sp(_command(commands, "sp", "derive and check plans for several ranks", _help.SP))
    _add_devices(
        _command(commands, "devices", "what this machine offers, and why not more", _help.DEVICES, _later("_devices"))
    )
    _add_explain(
        _command(commands, "explain", "what an allocation means, in plain English", _help.EXPLAIN, _later("_explain"))
    )
    _add_link(
        _command(commands, "link", "let ComfyUI load the node pack that pip installed", _help.LINK, _later("_link"))
    )
    _add_doctor(
        _command(commands, "doctor", "what is installed, and what is wrong with it", _help.DOCTOR, _later("_doctor"))
    )
    return parser


def _later(module: str, function: str = "run") -> Run:
    """What runs a command: a function of a module that is imported when it is called, so that others cost nothing."""

    def run(options: argparse.Namespace) -> ExitCode:
        do: Run = getattr(import_module(f"comfy_nodes.cli.{module}"), function)
        return do(options)

    return run


def _command(
    commands: SubParsers,
    name: str,
    summary: str,
    description: str,
    run: Run | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if run is not None:
        parser.set_defaults(name=parser.prog, run=run)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the pictures and the plan (default: a temporary one, kept)"
    )
    parser.add_argument(
        "--gguf",
        nargs="?",
        const=GGUF_TYPES[0],
        choices=GGUF_TYPES,
        help=f"run a quantised model from a GGUF file (TYPE left out: {GGUF_TYPES[0]})",
    )
    parser.add_argument("--steps", type=read_count, default=8, metavar="N", help="denoising steps (default: 8)")
    parser.add_argument(
        "--blocks", type=read_count, default=16, metavar="N", help="blocks of the model (default: 16, 7 MiB each)"
    )
    parser.add_argument(
        "--spec", metavar="TEXT", help='allocation over emulated:0 and cpu (default: "emulated:0,25%%;cpu,*")'
    )
    parser.add_argument(
        "--link",
        type=read_positive,
        metavar="GBPS",
        help="bandwidth of the emulated link in GB/s (default: fitted to the model's speed)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        choices=(0, 2, 3, 4),
        default=2,
        help="processes that run the model together (default: 2; 0 leaves that part out)",
    )
    parser.add_argument("--no-svg", action="store_true", help="do not write the pictures")
    parser.add_argument("--keep-model", action="store_true", help="keep the model's file in the folder")
    _add_planning(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="*.safetensors, the *.safetensors.index.json of a sharded model, or *.gguf"
    )
    parser.add_argument(
        "--prefix",
        metavar="TEXT",
        help="only tensors under this prefix, for example model.diffusion_model. (default: what all names share)",
    )
    allocation = parser.add_argument_group("allocation")
    allocation.add_argument("--spec", metavar="TEXT", help='an allocation, for example "cuda:0,6gb;cpu,*"')
    allocation.add_argument(
        "--compute",
        type=read_device_name,
        metavar="DEVICE",
        help="device that computes (default: the first accelerator)",
    )
    allocation.add_argument(
        "--virtual-ram-gb",
        type=read_positive,
        metavar="GB",
        help="gigabytes of the model to move off the compute device",
    )
    allocation.add_argument("--donor", metavar="DEVICE[,DEVICE]", help="where they go, filled in order (default: cpu)")
    _add_machine(parser)
    _add_planning(parser)
    parser.add_argument(
        "--compute-seconds",
        type=read_positive,
        metavar="S",
        help="a pass with all weights resident, as you measured it; turns transfer times into seconds a pass",
    )
    packing = parser.add_argument_group("lossless packing of bf16 (torchspan pack)")
    packing.add_argument(
        "--pack",
        choices=PACKS,
        default="never",
        help="plan with packed units: never (default), as many as make a forward fastest (auto), or always",
    )
    packing.add_argument(
        "--packed-ratio", type=read_positive, metavar="RATIO", help="packed bytes for each byte (default: 0.71 assumed)"
    )
    packing.add_argument(
        "--decode-gbps",
        type=read_positive,
        metavar="GBPS",
        help="dense GB/s that the compute device decodes (default: 300 assumed)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print the plan and the prediction as JSON instead of tables"
    )
    output.add_argument("--svg", metavar="PATH", help="also draw the placement")


def _add_gguf(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, help="what to find out")
    info = _command(
        commands, "info", "types, blocks and metadata of a GGUF file", _help.GGUF_INFO, _later("_gguf_info")
    )
    info.add_argument("file", metavar="FILE", help="*.gguf, of version 2 or 3")
    info.add_argument("--json", action="store_true", help="print JSON instead of tables")
    info.add_argument(
        "--metadata", action="store_true", help="also every metadata value; of arrays the length and the first values"
    )


def _add_pack(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("file", metavar="FILE", help="*.safetensors")
    parser.add_argument("-o", "--out", metavar="PATH", help=out)
    parser.add_argument(
        "--on",
        type=read_device_name,
        metavar="DEVICE",
        help="device that does the work (default: the first accelerator)",
    )


def _add_sp(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, help="what to do")
    derive = _command(
        commands, "derive", "derive a plan from a model, by trial", _help.SP_DERIVE, _later("_sp", "run_derive")
    )
    _add_probe(derive)
    derive.add_argument("--out", metavar="PATH", required=True, help="the plan file to write, JSON")
    derive.add_argument(
        "--allow-branches",
        action="store_true",
        help="go on although sizes decide what runs in the blocks: you know that it does not matter",
    )
    check = _command(commands, "check", "does a plan file still hold?", _help.SP_CHECK, _later("_sp", "run_check"))
    check.add_argument("plan", metavar="PLAN", help="what `torchspan sp derive` wrote")
    _add_probe(check)


def _add_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", metavar="MODULE:FUNCTION", help="your probe; modules in the current folder are found")


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help='the allocation, for example "cuda:0,6gb;cpu,*"')
    parser.add_argument("--model-size", type=read_size, metavar="SIZE", help="size of the model, for example 11.8gb")
    parser.add_argument("--compute", type=read_device_name, metavar="DEVICE", help="device that computes")
    _add_machine(parser, links=False)


def _add_link(parser: argparse.ArgumentParser) -> None:
    _add_comfyui(parser)
    parser.add_argument("--remove", action="store_true", help="remove the folder instead")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_comfyui(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_comfyui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--comfyui",
        metavar="PATH",
        help="folder of ComfyUI's main.py, or its --base-directory (default: COMFYUI_PATH, else the current folder)",
    )


def _add_machine(parser: argparse.ArgumentParser, *, links: bool = True) -> None:
    machine = parser.add_argument_group("machine (default: this one)")
    machine.add_argument(
        "--device",
        type=read_device,
        action="append",
        default=[],
        metavar="NAME=TOTAL[,FREE]",
        help="a device by hand, for example cuda:0=24gb,22gb; repeat it",
    )
    if links:
        machine.add_argument(
            "--link",
            type=read_link,
            action="append",
            default=[],
            metavar="SOURCE=GBPS",
            help="bandwidth from a donor to the compute device in GB/s, for example cpu=25; repeat it",
        )


def _add_planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="stripe",
        help="what stays on the compute device (default: stripe, a share of every block)",
    )
    parser.add_argument(
        "--slots", type=read_count, default=2, metavar="N", help="streaming buffers on the compute device (default: 2)"
    )
