"""The command tree: what can be typed, in words that teach. Nothing here needs torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

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

    # What add_subparsers returns has no public name at run time.
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

POLICIES: tuple[Policy, ...] = ("stripe", "interleave", "contiguous", "legacy_tail")

GGUF_TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4")
"""What the demo's matrices can be quantised to: what the gguf package writes in blocks that divide their rows."""

_MAIN = """\
Run one diffusion model across all the memory of a machine: find its blocks,
understand an allocation, plan where each byte lives, predict what that costs,
and stream the rest in just in time.

examples:
  torchspan demo                              the whole way, on a small model
  torchspan explain "cuda:0,6gb;cpu,*"        what an allocation means
  torchspan devices                           what this machine offers
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*"
                                              a real file, nothing loaded
  torchspan gguf info model-Q4_K_S.gguf       what a quantised file consists of
  torchspan link --comfyui ~/ComfyUI          ComfyUI loads the node pack
  torchspan doctor --comfyui ~/ComfyUI        what is installed, and what is wrong

exit codes:
  0    all went well
  1    refused or failed: the file, the devices or the budget do not allow it;
       stderr says why, and what would
  2    the command line or the allocation cannot be read
"""

_DEMO = """\
Write a small diffusion transformer as safetensors, find its blocks in the
header alone, plan it from an allocation, predict it, run it with part of its
weights behind an emulated slow link, and compare: prediction with measurement,
output with that of the unplaced model. The difference must be 0.0; the exit
code is 1 when it is not. Needs no accelerator.

Then two Ray workers do the same run together, each with half of the tokens and
both with the same copy of the weights. Their latent may differ from that of one
process by rounding (1e-6) and no more, or the exit code is 1.

With --gguf the same model is a GGUF file with quantised matrices, which stay
packed in the file, in the plan and on the way. Two more differences are shown:
to an ordinary model with the dequantised weights, which must be 0.0, too, and
to the original model, which is what the quantisation costs.

examples:
  torchspan demo
  torchspan demo --out pictures --steps 12
  torchspan demo --policy interleave --link 1.5
  torchspan demo --gguf Q4_0
"""

_PLAN = """\
Plan where each byte of a model lives, from the header of its file alone: no
weight is read and the devices need not exist. With --device the answer comes
without loading torch, in well under a second.

An allocation says what each device holds; `torchspan explain` tells what one
means. Without one, the planner keeps on the compute device what fits there.

examples:
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*"
  torchspan plan model.safetensors --compute cuda:0 --virtual-ram-gb 8
  torchspan plan model.safetensors.index.json \\
      --device cuda:0=24gb,22gb --device cpu=64gb --link cpu=25
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*" \\
      --compute-seconds 0.6 --svg placement.svg
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*" --json > plan.json
  torchspan plan model-Q4_K_S.gguf --spec "cuda:0,6gb;cpu,*"
"""

_GGUF = """\
Look into GGUF files, the quantised checkpoints of llama.cpp and ComfyUI-GGUF.

examples:
  torchspan gguf info model-Q4_K_S.gguf
  torchspan gguf info model-Q4_K_S.gguf --metadata

What a GGUF file would need on a machine, `torchspan plan` answers as for any
other file; `torchspan demo --gguf` runs a quantised model.
"""

_GGUF_INFO = """\
Say what a GGUF file consists of, from its header alone: architecture, how
many weights are kept in which type and what each type costs, the blocks that
a plan would place, and the metadata. No weight is read.

A model in GGUF is mixed: large matrices in few bits, norms and biases whole.
"bits a weight" tells how far a mix really goes, scales included: Q8_0 has 8.5,
Q4_K has 4.5, F16 has 16.

examples:
  torchspan gguf info model-Q4_K_S.gguf
  torchspan gguf info model-Q4_K_S.gguf --metadata
  torchspan gguf info model-Q4_K_S.gguf --metadata --json > info.json
"""

_DEVICES = """\
List the devices that torch accepts on this machine, their memory and links,
and say why there are not more: environment, drivers, WSL, peer access.

examples:
  torchspan devices
  torchspan devices --json
"""

_EXPLAIN = """\
Say in plain English what an allocation means; with the size of a model and
devices also what it comes to in bytes.

examples:
  torchspan explain "cuda:0,2.5gb;cpu,*"
  torchspan explain "#cuda:0;4;cpu"
  torchspan explain "cuda:0,50%;cuda:1,25%;cpu,*" --model-size 20gb \\
      --device cuda:0=24gb --device cuda:1=12gb --device cpu=64gb
"""

_LINK = """\
Let ComfyUI load the node pack that pip installed: one small folder
"torchspan" in its custom_nodes, which imports this package. Updating the
package updates the nodes. Only a folder that this command made is ever
replaced or removed.

examples:
  torchspan link --comfyui ~/ComfyUI
  torchspan link --comfyui ~/ComfyUI --remove
"""

_DOCTOR = """\
Say what is installed and in which version, which ComfyUI would load the pack
and what would be in its way, which devices there are and why not more, each
with what would help. The exit code is 1 when there is a problem.

examples:
  torchspan doctor --comfyui ~/ComfyUI
  torchspan doctor --json
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `torchspan`.

    Every subcommand sets `options.name`, which errors begin with, and `options.run`, which does the work.
    """
    parser = argparse.ArgumentParser(
        prog="torchspan", description=_MAIN, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"torchspan {version('comfy-nodes')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(_command(commands, "demo", "do the main job on a small model, end to end", _DEMO, _run_demo))
    _add_plan(_command(commands, "plan", "plan and predict a model from its file header alone", _PLAN, _run_plan))
    _add_gguf(_command(commands, "gguf", "what a quantised file consists of", _GGUF))
    _add_devices(_command(commands, "devices", "what this machine offers, and why not more", _DEVICES, _run_devices))
    _add_explain(_command(commands, "explain", "what an allocation means, in plain English", _EXPLAIN, _run_explain))
    _add_link(_command(commands, "link", "let ComfyUI load the node pack that pip installed", _LINK, _run_link))
    _add_doctor(_command(commands, "doctor", "what is installed, and what is wrong with it", _DOCTOR, _run_doctor))
    return parser


def _command(
    commands: SubParsers,
    name: str,
    summary: str,
    description: str,
    run: Callable[[argparse.Namespace], ExitCode] | None = None,
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
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print the plan and the prediction as JSON instead of tables"
    )
    output.add_argument("--svg", metavar="PATH", help="also draw the placement")


def _add_gguf(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, help="what to find out")
    info = _command(commands, "info", "types, blocks and metadata of a GGUF file", _GGUF_INFO, _run_gguf_info)
    info.add_argument("file", metavar="FILE", help="*.gguf, of version 2 or 3")
    info.add_argument("--json", action="store_true", help="print JSON instead of tables")
    info.add_argument(
        "--metadata", action="store_true", help="also every metadata value; of arrays the length and the first values"
    )


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


def _run_demo(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._demo import run

    return run(options)


def _run_plan(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._plan import run

    return run(options)


def _run_gguf_info(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._gguf_info import run

    return run(options)


def _run_devices(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._devices import run

    return run(options)


def _run_explain(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._explain import run

    return run(options)


def _run_link(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._link import run

    return run(options)


def _run_doctor(options: argparse.Namespace) -> ExitCode:
    from comfy_nodes.cli._doctor import run

    return run(options)
