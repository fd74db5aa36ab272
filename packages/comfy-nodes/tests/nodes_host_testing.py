"""The pack in the real host of this process: entered as the host enters packs, checked and run as the host does it."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from host_testing import Host

PACK = """from comfy_nodes.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
"""
NAMED_FILES = {
    "diffusion_models": ("flux1-dev.safetensors", "flux1-dev-Q8_0.gguf"),
    "text_encoders": ("clip_l.safetensors", "t5-Q8_0.gguf", "umt5.safetensors"),
    "checkpoints": ("sd_xl_base_1.0.safetensors",),
}
"""Empty files with the names that the golden workflows use: the host's checks look at names alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The pack in the host.

    Attributes:
        comfyui: the host.
        nodes: the host's module of nodes.
        server: the host's server, which listens to nobody.
        folder: where packs are written that a test wants the host to load.
    """

    comfyui: Host
    nodes: ModuleType
    server: Any
    folder: Path

    def classes(self) -> dict[str, Any]:
        """The host's nodes by id."""
        table: dict[str, Any] = self.nodes.NODE_CLASS_MAPPINGS
        return table

    def load(self, name: str, text: str) -> bool:
        """Have the host load a pack of one file."""
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "__init__.py").write_text(text)
        return bool(asyncio.run(self.nodes.load_custom_node(str(self.folder / name))))

    def check(self, prompt: Mapping[str, Any]) -> dict[str, str]:
        """What the host says about a prompt before it runs it: error text by node, after the handlers of prompts.

        A prompt whose outputs are all well has no errors.
        """
        posted = self.server.trigger_on_prompt({"prompt": dict(prompt)})
        execution = importlib.import_module("execution")
        valid, error, _, node_errors = asyncio.run(execution.validate_prompt("test", posted["prompt"], None))
        said = {
            number: "\n".join(f"{each['message']}: {each['details']}" for each in errors["errors"])
            for number, errors in node_errors.items()
        }
        assert valid or said, error
        return said

    def run(self, node_id: str, **inputs: Any) -> Any:
        """Run one node as the host does; returns its output object."""
        prepared = self.classes()[node_id].PREPARE_CLASS_CLONE(None)
        return prepared.EXECUTE_NORMALIZED(**inputs)

    def started(self) -> None:
        """What the server does when it starts: call back those who asked for it."""

        async def call() -> None:
            for callback in self.server.app.on_startup:
                await callback(self.server.app)

        asyncio.run(call())


def with_output(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt in which each of the nodes is looked at, so that the host checks all of them."""
    looks = {f"look-{number}": {"class_type": "PreviewAny", "inputs": {"source": [number, 0]}} for number in nodes}
    return {**nodes, **looks}


def older_pack() -> dict[str, type]:
    """Nodes of another pack with two of our ids."""
    return {name: type(name, (), {"__module__": __name__}) for name in ("DeviceSelectorMultiGPU", "UNETLoaderMultiGPU")}


@pytest.fixture(scope="session")
def pack(comfyui: Host, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The pack, loaded by the host as a user's host loads it; once a process, whoever asks for it."""
    paths = importlib.import_module("folder_paths")
    for kind in ("diffusion_models", "text_encoders", "checkpoints", "vae", "loras"):
        (comfyui.models / kind).mkdir(exist_ok=True)
        for name in NAMED_FILES.get(kind, ()):
            (comfyui.models / kind / name).touch()
        paths.add_model_folder_path(kind, str(comfyui.models / kind), is_default=True)
    if not _entered:
        _entered.append(_enter(comfyui, tmp_path_factory.mktemp("packs")))
    return replace(_entered[0], comfyui=comfyui)


_entered: list[Pack] = []


def _enter(comfyui: Host, folder: Path) -> Pack:
    paths = importlib.import_module("folder_paths")
    for kind in ("temp", "user", "frontend"):
        (folder / kind).mkdir()
    paths.set_temp_directory(str(folder / "temp"))
    paths.set_user_directory(str(folder / "user"))
    importlib.import_module("comfy.cli_args").args.front_end_root = str(folder / "frontend")
    importlib.import_module("utils.install_util")  # as the host does, before another module takes the name utils
    nodes = importlib.import_module("nodes")
    server = importlib.import_module("server").PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_builtin_extra_nodes())
    built = Pack(comfyui=comfyui, nodes=nodes, server=server, folder=folder)
    assert built.load("torchspan", PACK)
    return built
