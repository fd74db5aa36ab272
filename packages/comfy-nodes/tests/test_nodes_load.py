"""Every loader asks the adapter's function for it, with its files found and its options in their places; no host."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from nodes_testing import DEVICES

from alloc_spec import parse
from comfy_nodes import host as adapter
from comfy_nodes.host import Loaded, PlacementRequest
from comfy_nodes.host.app import folders, interface
from comfy_nodes.nodes.running import _checkpoint_parts, _load
from comfy_nodes.nodes.table._loaders import LOADERS


@pytest.fixture(autouse=True)
def edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards, and folders in which every file is found."""
    monkeypatch.setitem(vars(adapter), "device_names", lambda: DEVICES)
    monkeypatch.setattr(folders, "full_path", lambda folder, name: f"/{folder}/{name}")
    monkeypatch.setattr(folders, "diffusers_folder", lambda name: f"/diffusers/{name}")
    monkeypatch.setattr(folders, "embedding_directory", lambda: ["/embeddings"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
    """What is asked of the adapter's loaders, in place of having it done."""
    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def record(name: str, *given: Any, **named: Any) -> Loaded[Any]:
        made.append((name, given, named))
        return Loaded(value=name)

    for name in adapter.__all__:
        if name.startswith("load_"):
            monkeypatch.setitem(vars(adapter), name, lambda *given, name=name, **named: record(name, *given, **named))
    yield made


REQUEST = PlacementRequest(compute_device="cuda:1")


def test_encoders_keep_the_order_of_their_inputs(calls: list[Any]) -> None:
    values = {"clip_name3": "c", "clip_name1": "a", "clip_name2": "b"}
    _load.run(LOADERS["TripleCLIPLoader"], values, REQUEST)
    ((name, given, named),) = calls
    assert name == "load_text_encoders"
    assert given == (["/text_encoders/a", "/text_encoders/b", "/text_encoders/c"], REQUEST)
    assert named == {"embedding_directory": ["/embeddings"]}


@pytest.mark.parametrize("loader", [name for name in LOADERS if LOADERS[name].loads == "clip"])
def test_the_family_is_passed_on_where_there_is_one(loader: str, calls: list[Any]) -> None:
    names = [widget.name for widget in LOADERS[loader].widgets]
    _load.run(LOADERS[loader], dict.fromkeys(names, "wan"), REQUEST)
    ((called, given, named),) = calls
    assert called == ("load_gguf_text_encoders" if loader.endswith("GGUF") else "load_text_encoders")
    assert len(given[0]) == len([name for name in names if name.startswith("clip_name")])
    assert named.get("clip_type") == ("wan" if "type" in names else None)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({}, {}),
        ({"patch_on_device": True}, {"patch_on_device": True}),
        ({"dequant_dtype": "float16", "patch_dtype": "target"}, {"dequant_dtype": "float16", "patch_dtype": "target"}),
    ],
)
def test_only_options_that_were_given_reach_the_loader(
    values: dict[str, Any], options: dict[str, Any], calls: list[Any]
) -> None:
    _load.run(LOADERS["UnetLoaderGGUFAdvanced"], {"unet_name": "flux-Q8_0.gguf", **values}, REQUEST)
    assert calls == [("load_gguf_diffusion_model", ("/diffusion_models/flux-Q8_0.gguf", REQUEST), options)]


def test_a_weight_type_that_is_not_said_is_the_default(calls: list[Any]) -> None:
    _load.run(LOADERS["UNETLoader"], {"unet_name": "flux.safetensors"}, REQUEST)
    ((_, _, named),) = calls
    assert named == {"weight_dtype": "default"}


EMBEDDINGS = {"embedding_directory": ["/embeddings"]}


@pytest.mark.parametrize(
    ("loader", "values", "function", "path", "options"),
    [
        ("VAELoader", {"vae_name": "pixel_space"}, "load_vae", "pixel_space", {}),
        ("CLIPVisionLoader", {"clip_name": "a"}, "load_clip_vision", "/clip_vision/a", {}),
        ("CheckpointLoaderSimple", {"ckpt_name": "a"}, "load_checkpoint", "/checkpoints/a", EMBEDDINGS),
        ("DiffusersLoader", {"model_path": "a"}, "load_diffusers", "/diffusers/a", EMBEDDINGS),
        ("ControlNetLoader", {"control_net_name": "a"}, "load_controlnet", "/controlnet/a", {"model": None}),
        (
            "DiffControlNetLoader",
            {"model": "m", "control_net_name": "a"},
            "load_controlnet",
            "/controlnet/a",
            {"model": "m"},
        ),
        (
            "UNETLoader",
            {"unet_name": "a", "weight_dtype": "fp8_e5m2"},
            "load_diffusion_model",
            "/diffusion_models/a",
            {"weight_dtype": "fp8_e5m2"},
        ),
        ("UnetLoaderGGUF", {"unet_name": "a"}, "load_gguf_diffusion_model", "/diffusion_models/a", {}),
    ],
)
def test_a_file_is_looked_for_in_the_folder_of_its_kind(
    loader: str, values: dict[str, Any], function: str, path: str, options: dict[str, Any], calls: list[Any]
) -> None:
    loaded = _load.run(LOADERS[loader], values, REQUEST)
    assert calls == [(function, (path, REQUEST), options)]
    assert loaded.value == function


def test_every_loader_has_a_function_and_no_function_is_left_over() -> None:
    assert set(_load._LOADS) == set(LOADERS)


def test_what_is_missing_is_the_hosts_to_say(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    def absent(folder: str, name: str) -> str:
        raise FileNotFoundError(f"{name} is not among the host's {folder}")

    monkeypatch.setattr(folders, "full_path", absent)
    with pytest.raises(FileNotFoundError, match="b is not among the host's text_encoders"):
        _load.run(LOADERS["DualCLIPLoaderGGUF"], {"clip_name1": "b", "clip_name2": "c"}, REQUEST)
    assert calls == []


def test_the_low_precision_loader_leaves_the_device_to_the_host(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checkpoint_parts, "loaded_output", lambda row, loaded: (row.node_id, loaded.value))
    execute = _checkpoint_parts.EXECUTES["UNetLoaderLP"]
    assert execute(object, {"unet_name": "flux.safetensors"}) == ("UNetLoaderLP", "load_diffusion_model")
    ((_, given, _),) = calls
    assert given[1] == PlacementRequest()


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> list[int]:
    """What a node shows of its progress; its output is what it loaded."""
    steps: list[int] = []

    def progress_bar(total: int) -> Any:
        steps.append(total)
        return SimpleNamespace(update=steps.append)

    monkeypatch.setattr(interface, "progress_bar", progress_bar)
    monkeypatch.setattr(_checkpoint_parts, "loaded_output", lambda row, loaded: (row.node_id, loaded.value))
    return steps


def test_a_checkpoint_is_read_once_for_its_three_parts(calls: list[Any], executed: list[int]) -> None:
    execute = _checkpoint_parts.EXECUTES["CheckpointLoaderAdvancedDisTorch2MultiGPU"]
    inputs = {"ckpt_name": "a", "unet_virtual_vram_gb": 1.0, "clip_virtual_vram_gb": 0.0, "vae_device": "cpu"}
    output = execute(object, {**inputs, "clip_compute_device": "cuda:1"})
    ((name, given, named),) = calls
    assert (name, given[0]) == ("load_checkpoint", "/checkpoints/a")
    assert given[1] == PlacementRequest(compute_device="cuda:0", allocation=parse("#cuda:0;1;cpu"), eject_models=True)
    assert named == {
        "clip_request": PlacementRequest(compute_device="cuda:1"),
        "vae_request": PlacementRequest(compute_device="cpu"),
        **EMBEDDINGS,
    }
    assert output == ("CheckpointLoaderAdvancedDisTorch2MultiGPU", "load_checkpoint")
    assert executed == [1, 1]


def test_a_bad_part_is_refused_before_the_file_is_looked_for(calls: list[Any], executed: list[int]) -> None:
    execute = _checkpoint_parts.EXECUTES["CheckpointLoaderAdvancedDisTorch2MultiGPU"]
    with pytest.raises(ValueError, match="did you mean"):
        execute(object, {"ckpt_name": "a", "clip_expert_mode_allocations": "cuda:0=1gb"})
    assert (calls, executed) == ([], [])


def test_a_device_is_handed_on_as_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checkpoint_parts, "node_output", lambda *values: values)
    assert _checkpoint_parts.EXECUTES["DeviceSelectorMultiGPU"](object, {"device": "cuda:1"}) == ("cuda:1",)
