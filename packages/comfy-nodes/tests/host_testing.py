"""The real ComfyUI in this process, on four simulated devices named npu, and tiny models to load into it.

ComfyUI decides about devices when it is imported, and torch allows one simulated backend a process: run these tests by
themselves (`pytest -m host packages/comfy-nodes`).
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from alloc_spec import parse
from comfy_nodes.host import PlacementRequest
from get_comfyui import find_comfyui, read_version

GIB = 1 << 30
CAPACITY_BYTES = 4 * GIB
DEVICES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """ComfyUI in this process.

    Attributes:
        models: folder with tiny models, in the host's layout.
        name: of the architecture that most tests use; hosts before 0.33 accept no tiny Flux.
    """

    models: Path
    name: str

    def module(self, name: str) -> Any:
        """A module of ComfyUI."""
        return importlib.import_module(name)

    @property
    def management(self) -> Any:
        """The host's memory management."""
        return self.module("comfy.model_management")

    def diffusion(self, kind: str = "plain") -> Path:
        """Path of the tiny diffusion model: plain (float32), bfloat16, packed (GGUF) or dense (its numbers)."""
        endings = {
            "plain": ".safetensors",
            "bfloat16": "_bfloat16.safetensors",
            "packed": "_q8_0.gguf",
            "dense": "_q8_0_dense.safetensors",
        }
        return self.models / "diffusion_models" / f"tiny_{self.name}{endings[kind]}"

    def stock(self, path: Path, device: str = "npu:0", **options: Any) -> Any:
        """A diffusion model as the stock loader makes it, on one device."""
        placed = {"load_device": torch.device(device), "offload_device": torch.device("cpu")}
        return self.module("comfy.sd").load_diffusion_model(str(path), model_options={**placed, **options})

    def lora(self, model: Any, strength: float) -> Any:
        """The model with the tiny LoRA of its architecture, as the stock LoRA node patches it."""
        weights = self.module("comfy.utils").load_torch_file(
            str(self.models / "loras" / f"tiny_{self.name}_lora.safetensors")
        )
        return self.module("comfy.sd").load_lora_for_models(model, None, weights, strength, 0)[0]

    def sample(
        self,
        model: Any,
        name: str | None = None,
        cfg: float = 1.0,
        *,
        after_step: Callable[[int], None] | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """Two steps of the stock sampler, seeded.

        Args:
            model: the host's MODEL.
            name: of its architecture.
            cfg: above 1 the negative prompt is computed, too.
            after_step: called with the number of each step when it is done.
            more: what the conditioning says besides (`hooks`).
        """
        tiny = importlib.import_module("comfyui_checkpoints").TINY_MODELS[name or self.name]
        wanted = tiny.conditioning
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(tiny.latent_shape, generator=generator)
        context = torch.randn(1, wanted.tokens, wanted.width, generator=generator)
        extra: dict[str, Any] = {"guidance": 3.5, **more}
        if wanted.pooled_width:
            extra["pooled_output"] = torch.randn(1, wanted.pooled_width, generator=generator)
        if wanted.mask:
            extra["attention_mask"] = torch.ones(1, wanted.tokens)
        positive, negative = [[context, dict(extra)]], [[context * 0.5, dict(extra)]]
        sample = self.module("comfy.sample").sample
        latent = torch.zeros(tiny.latent_shape)
        callback = None if after_step is None else lambda step, *_: after_step(step)
        result = sample(
            *(model, noise, 2, cfg, "euler", "simple", positive, negative, latent),
            callback=callback,
            seed=0,
            disable_pbar=True,
        )
        return torch.as_tensor(result)

    def used(self) -> list[int]:
        """Bytes in use on each simulated device."""
        simdev = importlib.import_module("simdev")
        return [simdev.mem(index).used for index in range(DEVICES)]

    def free_all(self) -> None:
        """What the host's `/free` does, on every device; hosts before 0.23 free one."""
        for index in range(DEVICES):
            self.management.free_memory(1e30, torch.device("npu", index))
        gc.collect()
        self.management.cleanup_models()


def request(spec: str | None, device: str = "npu:0", **more: Any) -> PlacementRequest:
    """A request in one line; `"auto"` is passed on."""
    allocation = spec if spec is None or spec == "auto" else parse(spec)
    return PlacementRequest(compute_device=device, allocation=allocation, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """ComfyUI and its tiny models; skipped, or failed where HOST_REQUIRED=1 says so, when it cannot be had."""
    folder = find_comfyui()
    if folder is None:
        _give_up("no ComfyUI checkout: set COMFYUI_PATH, or run tools/get_comfyui.py")
    return start_host(folder, tmp_path_factory.mktemp("comfyui-models"))


def start_host(folder: Path, models: Path) -> Host:
    """Start the ComfyUI of a checkout in this process, with tiny models in the folder `models`."""
    _start(str(folder))
    release = tuple(int(part) for part in read_version(folder).split(".")[:2])
    name = "flux" if release >= (0, 33) else "wan"
    tiny = importlib.import_module("comfyui_checkpoints")
    for dtype in (torch.float32, torch.bfloat16):
        tiny.write_diffusion_model(models, name, dtype)
    tiny.write_gguf_twin(models, name)
    tiny.write_lora(models, name)
    tiny.write_vae(models)
    return Host(models=models, name=name)


@pytest.fixture
def host(comfyui: Host) -> Iterator[Host]:
    """The host with nothing loaded, before and after: no memory in use, no violation, no model left."""
    simdev = importlib.import_module("simdev")
    for index in range(DEVICES):
        simdev.set_capacity(index, CAPACITY_BYTES)
    comfyui.free_all()
    simdev.reset()
    yield comfyui
    comfyui.free_all()
    assert comfyui.used() == [0] * DEVICES
    assert not simdev.take_violations()


@pytest.fixture
def sized(host: Host) -> Host:
    """The host, for tests whose numbers of bytes are those of the tiny Flux."""
    if host.name != "flux":
        pytest.skip("this host accepts no tiny Flux, whose sizes the test is written for")
    return host


def write_model(host: Host, *names: str) -> None:
    """Write more tiny models, those that not every test needs."""
    tasks = importlib.import_module("comfyui_checkpoints").writers()
    for name in names:
        tasks[name](host.models)


def names_of(loaded: list[Any]) -> Mapping[str, int]:
    """Bytes that the host believes to have loaded, by device."""
    sizes: dict[str, int] = {}
    for model in loaded:
        sizes[str(model.load_device)] = sizes.get(str(model.load_device), 0) + model.loaded_size()
    return sizes


def _start(folder: str) -> None:
    if "comfy.model_management" in sys.modules:
        return
    import simdev

    torch.version.cuda = None
    try:
        simdev.install("npu", DEVICES, CAPACITY_BYTES, pretend_torch_npu=True)
    except (simdev.CompilerNotFoundError, simdev.InstallError) as error:
        _give_up(str(error))
    sys.path.insert(0, folder)
    arguments, sys.argv = sys.argv, ["main.py"]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.model_management")
    finally:
        sys.argv = arguments
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_grad_enabled(False)


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("HOST_REQUIRED") == "1":
        pytest.fail(f"HOST_REQUIRED=1, and there is no host\n{reason}", pytrace=False)
    pytest.skip(reason)
