"""Write the host contract: every symbol, call, replaced method and attribute of ComfyUI that the pack touches.

Run `uv run python tools/host_contract.py` to write it, with `--check` to see whether it is current (exit code 1 when it
is not), with `--comfyui PATH` to check a checkout against it, too (exit code 1 when a node cannot run there).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch

from comfy_nodes.contract import Call, Checkout, Contract, Need, check
from comfy_nodes.contract._needs import EVERY_NODE, FILE, OTHER_PACKS, Kind
from comfy_nodes.nodes.running._classes import runs
from comfy_nodes.nodes.table._table import TABLE
from host_pack import PACKAGE
from host_reader import Use
from host_uses import Unit, members_of_adapter, reached, units

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("packages/comfy-nodes/src")

WITHOUT: Final[Mapping[str, str]] = {
    "_layout_cls": "the host knows no layouts of quantised weights, and GGUF blocks are stored without one",
    "_params": "the host knows no layouts of quantised weights, and GGUF blocks are stored without one",
    "_qdata": "the host knows no layouts of quantised weights, and GGUF blocks are stored without one",
    "cached_patcher_init": "the host makes no copies of a model for other devices",
    "comfy.model_patcher.ModelPatcher.pinned": "the host locks no pages of weights",
    "comfy.model_patcher.ModelPatcher.deepclone_multigpu": "the host makes no copies of a model for other devices",
    "comfy.model_patcher.ModelPatcher.model_patches_models": "the donors' shares cannot be loaded with the model",
    "comfy.model_patcher.ModelPatcher.model_state_dict_for_saving": "the host saves a model in another way",
    "comfy.model_patcher.ModelPatcher.state_dict_for_saving": "the host writes patches into weights before it saves",
    "comfy.ops.uncast_bias_weight": "the host keeps no buffers of copied weights to be given back",
    "model_loaded_weight_memory": "the host counts loaded bytes in another way",
}
"""What came after the oldest release, or may go: symbol -> what happens without it. The pack does without these."""

LOUD: Final = frozenset({"comfy.model_patcher.ModelPatcher.model_patches_models", "model_loaded_weight_memory"})
"""Of `WITHOUT`: nothing does without; the sentence says more than that the nodes are disabled."""

NO_SUPER: Final = frozenset({"dequantize", "forward_comfy_cast_weights", "get_plain_tensors", "model_size", "quantize"})
NO_SUPER_OPTIONAL: Final = frozenset({"state_dict_tensors"})
"""Methods that replace the host's without asking it, so that the code alone does not show it."""

KEYS: Final = ("custom_operations", "fp8_optimizations", "initial_device", "load_device", "offload_device")
"""Keys of the host's model options that loaders rely on."""

OF_LIBRARIES: Final = frozenset({"json", "on_startup", "post"})
"""Attributes of aiohttp's classes, which the host hands on."""

RUNS_ALSO: Final[Mapping[str, str]] = {"UNetLoaderLP": "UNETLoader"}
"""Nodes that run another loader by its name."""

PLACES: Final = (
    *("comfy", "comfy/ldm/modules", "comfy_api/latest", "comfy_execution", "comfy_extras/nodes_model_merging.py"),
    *("execution.py", "folder_paths.py", "latent_preview.py", "nodes.py", "server.py"),
)
NOT_OFFERED: Final = "comfy_nodes.host.parallel"
"""What no node runs yet: a change of the host there disables nothing."""

DISABLED: Final = "the nodes are disabled"
PROBED: Final = "the pack asks for it and does without"


def contract(root: Path = ROOT) -> Contract:
    """The contract as the code has it now."""
    source = root / SOURCE
    all_units = units(source, _ordinary() | members_of_adapter(source))
    needed = _needed_by(all_units)
    gathered: dict[tuple[str, str], list[tuple[Use, frozenset[str]]]] = {}
    replaced = {use.name for unit in all_units.values() for use in unit.uses if _kind(use) == "override"}
    for key, unit in all_units.items():
        for use in () if key[0].startswith(NOT_OFFERED) else unit.uses:
            kind = "override" if use.name in replaced else _kind(use)
            if kind is not None:
                gathered.setdefault((use.name, kind), []).append((use, needed.get(key, frozenset())))
    needs = [_need(name, cast("Kind", kind), found) for (name, kind), found in gathered.items()]
    keys = [Need(name=name, kind="key", needed_by=_loaders(), without=DISABLED) for name in KEYS]
    return Contract(needs=tuple(sorted([*needs, *keys], key=lambda need: (need.kind, need.name))), places=PLACES)


def _ordinary() -> frozenset[str]:
    """Attributes that say nothing about the host: those of torch's and Python's own objects."""
    samples = (torch.Tensor, torch.nn.Module, torch.device("cpu"), torch.float32, str, dict, list, set, int, Path)
    return frozenset(name for sample in samples for name in dir(sample)) | OF_LIBRARIES


def _kind(use: Use) -> str | None:
    if use.kind != "perhaps override":
        return use.kind
    return "override" if use.name.rpartition(".")[2] in NO_SUPER | NO_SUPER_OPTIONAL else None


def _need(name: str, kind: Kind, found: Sequence[tuple[Use, frozenset[str]]]) -> Need:
    uses = [use for use, _ in found]
    needed_by = {one for _, names in found for one in names}
    optional = all(use.asked or _is_late(use.name) for use in uses) and name not in LOUD
    calls: set[Call] = {use.call for use in uses if use.call is not None}
    parameters = next((use.parameters for use in uses if use.parameters is not None), None)
    return Need(
        name=name,
        kind=kind,
        needed_by=(EVERY_NODE,) if EVERY_NODE in needed_by else tuple(sorted(needed_by)),
        calls=tuple(sorted(calls)),
        parameters=parameters,
        optional=optional,
        without=WITHOUT.get(name, PROBED if optional else DISABLED),
    )


def _is_late(name: str) -> bool:
    return name in WITHOUT or name.rpartition(".")[2] in NO_SUPER_OPTIONAL


def _needed_by(all_units: Mapping[tuple[str, str], Unit]) -> dict[tuple[str, str], frozenset[str]]:
    """Which nodes run each unit: `EVERY_NODE`, loaders' names and nodes' ids, or `OTHER_PACKS`."""
    (sibling,) = [key for key in all_units if key[1] == "sibling_class"]
    at_start = reached(
        {key: unit for key, unit in all_units.items() if key != sibling}, [(f"{PACKAGE}.nodes", "__getattr__")]
    )
    of_siblings = reached(all_units, [sibling]) - at_start
    found: dict[tuple[str, str], set[str]] = {key: {EVERY_NODE} for key in at_start}
    for key in of_siblings:
        found.setdefault(key, set()).add(OTHER_PACKS)
    roots = {row.runs: _unit_of(runs(row)) for row in TABLE.values()}
    for name, root in roots.items():
        for key in reached(all_units, [root, *([roots[RUNS_ALSO[name]]] if name in RUNS_ALSO else [])]) - at_start:
            found.setdefault(key, set()).add(name)
    return {key: frozenset(names) for key, names in found.items()}


def _unit_of(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__.partition(".")[0]


def _loaders() -> tuple[str, ...]:
    return tuple(sorted({row.loader.name for row in TABLE.values() if row.loader is not None}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it, or check a checkout; return the exit code."""
    parser = argparse.ArgumentParser(description="Write what the pack touches of ComfyUI, and check checkouts.")
    parser.add_argument("--check", action="store_true", help="only see whether the file is current")
    parser.add_argument(
        "--comfyui", type=Path, action="append", default=[], metavar="PATH", help="a checkout; repeat it"
    )
    options = parser.parse_args(arguments)
    now = contract()
    path = ROOT / SOURCE / FILE.relative_to(FILE.parents[2])
    if not options.check and not options.comfyui:
        path.write_text(now.to_json(), encoding="utf-8")
        print(f"{path}: {len(now.needs)} needs")
        return 0
    if options.check and (not path.is_file() or path.read_text(encoding="utf-8") != now.to_json()):
        print(f"{path} is not what the code says; run tools/host_contract.py")
        return 1
    failed = False
    for checkout in options.comfyui:
        broken = check(now, Checkout(checkout))
        unmet = [each for each in broken if not each.need.optional]
        failed = failed or bool(unmet)
        for each in broken:
            level = "note" if each.need.optional else "missing"
            print(f"{checkout}: {level}: {each.need.name} ({each.need.kind}): {each.reason}; {each.need.without}")
        print(f"{checkout}: {len(now.needs)} needs, {len(unmet)} not met")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
