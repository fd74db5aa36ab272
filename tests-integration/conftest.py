"""Fixtures shared by the tests on the real host: tiny checkpoints, and one server of each kind for a whole run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui_server import HERE, Server, require_comfyui, running_server

ROOT = HERE.parent
PACK = "torchspan"
DEVICES = 3
SMALL = (
    *("flux", "wan", "ltxv", "sd15", "flux-lora", "wan-lora", "ltxv-lora", "sd15-lora"),
    *("flux-gguf", "wan-gguf", "vae"),
)
LARGE = ("clip", "checkpoint")
PARTS = ("control", "difference", "vision", "diffusers")


def write_models(folder: Path, *names: str) -> None:
    """Write tiny checkpoints in a process of its own, which alone imports ComfyUI."""
    command = [sys.executable, str(HERE / "comfyui_checkpoints.py"), str(folder), *names]
    path = os.pathsep.join([str(ROOT / "tools"), *sys.path])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder with the tiny diffusion models, LoRAs, GGUF twin and VAE; 140 MB, removed in the end."""
    require_comfyui()
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, *SMALL)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def large_models(tiny_models: Path) -> Path:
    """The same folder with the text encoder and the SD 1.5 checkpoint, whose sizes are fixed: 600 MB more."""
    write_models(tiny_models, *LARGE)
    return tiny_models


@pytest.fixture(scope="session")
def part_models(tiny_models: Path) -> Path:
    """The same folder with what stands beside a diffusion model, whose sizes are fixed: 1.7 GB more."""
    write_models(tiny_models, *PARTS)
    return tiny_models


def make_base(folder: Path, models: Path) -> Path:
    """A base directory with these models and this repository as the pack."""
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "models").symlink_to(models)
    (folder / "custom_nodes" / PACK).symlink_to(ROOT)
    return folder


@pytest.fixture(scope="session")
def cpu_server(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Server]:
    """The host on the CPU, with the pack."""
    base = make_base(tmp_path_factory.mktemp("cpu") / "base", tiny_models)
    with running_server(base, packs=[PACK]) as server:
        yield server


@pytest.fixture(scope="session")
def device_server(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Server]:
    """The host on three strict simulated accelerators, `npu:0` to `npu:2`, with the pack."""
    base = make_base(tmp_path_factory.mktemp("devices") / "base", tiny_models)
    with running_server(base, packs=[PACK], devices=DEVICES, capacity_bytes=8 << 30) as server:
        yield server
