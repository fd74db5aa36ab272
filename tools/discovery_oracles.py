"""The models whose blocks are known: how to build each without weights, and which modules are its labelled blocks.

The facts are tests-integration/data/blocks_*.json: block classes that diffusers and transformers declare themselves
(`_no_split_modules`, `_repeated_blocks`), and hand-labelled containers for ComfyUI's models.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from get_comfyui import find_comfyui

DATA = Path(__file__).resolve().parents[1] / "tests-integration" / "data"
FAMILIES = ("comfy", "diffusers", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """One model with known blocks.

    Attributes:
        family: the library it comes from.
        name: its key in the facts.
        label_count: number of labelled blocks.
        parameter_count: parameters, tied ones once.
        build: makes the model without weights.
        label_paths: paths of the labelled blocks in a built model.
    """

    family: str
    name: str
    label_count: int
    parameter_count: int
    build: Callable[[], nn.Module]
    label_paths: Callable[[nn.Module], list[str]]


def load(family: str, folder: Path = DATA) -> list[Oracle]:
    """The oracles of one family, in the order of the facts."""
    facts = json.loads((folder / f"blocks_{family}.json").read_text(encoding="utf-8"))
    if family == "comfy":
        return [_comfy_oracle(name, entry) for name, entry in facts["models"].items()]
    builders = {"diffusers": _build_diffusers, "transformers": _build_transformers}
    return [
        Oracle(
            family=family,
            name=name,
            label_count=entry["outermost_paths_count"],
            parameter_count=entry["params"],
            build=partial(builders[family], name, entry),
            label_paths=partial(_outermost, classes=frozenset(entry["instances"])),
        )
        for name, entry in facts["classes"].items()
    ]


def _outermost(model: nn.Module, classes: frozenset[str]) -> list[str]:
    """Paths of the instances of these classes that are not inside another one."""
    found: list[str] = []
    for path, module in model.named_modules():
        if type(module).__name__ in classes and not (found and path.startswith(f"{found[-1]}.")):
            found.append(path)
    return found


def _build_diffusers(name: str, entry: Mapping[str, Any]) -> nn.Module:
    model_class = getattr(importlib.import_module(entry["module"]), name)
    with torch.device("meta"):
        model: nn.Module = model_class(**entry.get("init_kwargs", {}))
    return model


def _build_transformers(name: str, entry: Mapping[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name))
    return model


@contextmanager
def _arguments(*arguments: str) -> Iterator[None]:
    """The given command line, which ComfyUI reads while it is imported."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def import_comfy(module: str) -> Any:
    """A module of ComfyUI, imported for the CPU."""
    folder = find_comfyui()
    if folder is None:
        raise FileNotFoundError("no ComfyUI checkout; set COMFYUI_PATH to one")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with _arguments("--cpu"):
        importlib.import_module("comfy.options").enable_args_parsing()
        return importlib.import_module(module)


def _comfy_oracle(name: str, entry: Mapping[str, Any]) -> Oracle:
    return Oracle(
        family="comfy",
        name=name,
        label_count=entry["primary_count"],
        parameter_count=entry["params"],
        build=partial(_build_comfy, entry),
        label_paths=partial(_members, containers=tuple(entry["primary_containers"])),
    )


def _build_comfy(entry: Mapping[str, Any]) -> nn.Module:
    try:
        return _construct_comfy(entry, torch.device("meta"))
    except RuntimeError as error:
        # A constructor that computes with a tensor's value cannot run on the meta device. ComfyUI's own layers leave
        # their weights uninitialised, so that on the CPU no page of them is ever touched.
        if "meta tensor" not in str(error):
            raise
        return _construct_comfy(entry, torch.device("cpu"))


def _construct_comfy(entry: Mapping[str, Any], device: torch.device) -> nn.Module:
    module, _, class_name = entry["path"].rpartition(".")
    model_class = getattr(import_comfy(module), class_name)
    arguments = dict(entry["kwargs"])
    accepted = inspect.signature(model_class.__init__).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    offered = {
        "device": device,
        "dtype": torch.bfloat16,
        "operations": import_comfy("comfy.ops").disable_weight_init,
        "config_dict": _comfy_config(entry),
    }
    arguments |= {name: value for name, value in offered.items() if name in accepted}
    if takes_any:
        arguments |= {name: offered[name] for name in ("device", "dtype", "operations")}
    # The default device also makes what a constructor computes, which some constructors then read.
    with nullcontext() if "device" in arguments else device:
        model: nn.Module = model_class(**arguments)
    return model


def _comfy_config(entry: Mapping[str, Any]) -> dict[str, Any]:
    folder = find_comfyui()
    if folder is None or "config_file" not in entry:
        return {}
    config: dict[str, Any] = json.loads((folder / entry["config_file"]).read_text(encoding="utf-8"))
    return config


def _members(model: nn.Module, containers: tuple[str, ...]) -> list[str]:
    """Paths of the modules with parameters in these containers: ``*`` is any component, ``!`` means the path itself."""
    patterns = []
    for container in containers:
        path = re.escape(container.removesuffix("!")).replace(r"\*", r"[^.]+")
        patterns.append(path if container.endswith("!") else path + r"\.[^.]+")
    wanted = re.compile("|".join(patterns))
    return [
        path
        for path, module in model.named_modules()
        if wanted.fullmatch(path) and next(module.parameters(), None) is not None
    ]
