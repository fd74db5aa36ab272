"""Nodes of other packs, with a stand-in for those packs that the host loads after ours, as it often does."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from host_testing import comfyui, host
from nodes_host_testing import Pack, pack, with_output
from safetensors.torch import save_file

from comfy_nodes.host import PlacementRefusedError
from comfy_nodes.host.app import interface
from comfy_nodes.nodes import _serving
from comfy_nodes.nodes._errors import SiblingError
from comfy_nodes.nodes.table._siblings import SIBLINGS, SiblingNode
from comfy_nodes.nodes.table._table import TABLE

__all__ = ["comfyui", "host", "pack"]
pytestmark = pytest.mark.host

OLDER_PACK = "from nodes_host_testing import older_pack\nNODE_CLASS_MAPPINGS = older_pack()\n"
STANDINS = "from nodes_standins import NODE_CLASS_MAPPINGS\n"
BROKEN = "PulidModelLoader"
PRESENT = [node for node in SIBLINGS if node.base != BROKEN]
WITH_TESTS_OF_THEIR_OWN = {"WanVideoBlockSwap", "WanVideoSampler", "FantasyTalkingModelLoader"}
SAYING_WHERE = [node for node in PRESENT if node.base not in WITH_TESTS_OF_THEIR_OWN]


@pytest.fixture(scope="session")
def standins(pack: Pack) -> ModuleType:
    """The stand-in pack, loaded after ours; the server then starts."""
    assert not [node.node_id for node in SIBLINGS if node.node_id in pack.classes()]
    logger = logging.getLogger("comfy_nodes.nodes._serving")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.INFO
    try:
        assert pack.load("standins", STANDINS)
        pack.started()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    module = sys.modules["nodes_standins"]
    module.said_at_start = said  # type: ignore[attr-defined]
    return module


def published(module: ModuleType, node: SiblingNode) -> dict[str, Any] | None:
    """What was published of a node; None where its inputs were not."""
    found: dict[str, Any] | None = module.PUBLISHED.get(node.node_id)
    return None if found is None or "unknown" in found else found


def with_device(node: SiblingNode, base: Any) -> dict[str, list[str]]:
    """The inputs of another pack's node with our device where our table says, by group."""
    own = base.INPUT_TYPES()
    groups = {group: list(own.get(group, {})) for group in ("required", "optional")}
    names = groups["required" if node.required else "optional"]
    names.insert(names.index(node.after) + 1 if node.after in names else len(names), node.device)
    return groups


def test_nodes_of_a_pack_that_loads_later_are_entered_when_the_server_starts(pack: Pack, standins: ModuleType) -> None:
    there = {node.node_id for node in SIBLINGS if node.node_id in pack.classes()}
    assert there == {node.node_id for node in PRESENT}
    assert pack.classes()["LTXVLoaderMultiGPU"].RELATIVE_PYTHON_MODULE == "custom_nodes.torchspan"
    assert _serving.enter_siblings() == []


def test_what_was_entered_and_what_was_left_out_is_said_once(standins: ModuleType) -> None:
    said: list[str] = standins.said_at_start
    assert sum(sentence.startswith(f"{len(PRESENT)} nodes for packs") for sentence in said) == 1
    assert [sentence for sentence in said if "left out" in sentence] == [
        "PulidModelLoaderMultiGPU is left out: PulidModelLoader of PuLID_ComfyUI cannot be read "
        "('a folder of models that nobody registered')"
    ]


@pytest.mark.parametrize("node", PRESENT, ids=lambda node: node.node_id)
def test_inputs_and_outputs_are_those_published(pack: Pack, standins: ModuleType, node: Any) -> None:
    was = published(standins, node)
    described = pack.classes()[node.node_id].GET_NODE_INFO_V1()
    groups = {group: list(described["input"].get(group, {})) for group in ("required", "optional")}
    if was is None:
        base = standins.NODE_CLASS_MAPPINGS[node.base]
        assert groups == with_device(node, base)
        assert list(described["output"]) == list(base.RETURN_TYPES)
        assert described["category"] == node.category
        return
    for group, names in groups.items():
        assert names == [each["name"] for each in was["inputs"] if each["where"] == group], group
    assert list(described["output"]) == was["returns"]
    assert described["category"] == was["category"]
    for each in was["inputs"]:
        if each["type"] == "MULTIGPUDEVICE":
            assert described["input"][each["where"]][each["name"]][0] == "MULTIGPUDEVICE"


@pytest.mark.parametrize("node", SAYING_WHERE, ids=lambda node: node.node_id)
def test_every_node_runs_where_it_is_told_with_what_it_is_given(pack: Pack, standins: ModuleType, node: Any) -> None:
    shown = pack.classes()[node.node_id].GET_NODE_INFO_V1()["input"]
    own = [name for group in shown.values() for name in group if name not in (node.device, node.offload, "unique_id")]
    given = {name: f"a {name}" for name in own}
    result = pack.run(node.node_id, **given, **{node.device: "npu:2"}).args[0]
    assert result["device"] == "npu:2"
    assert given.items() <= result["inputs"].items()
    assert node.device not in result["inputs"] or node.hides


def test_a_node_that_can_be_read_again_is_entered_later(
    pack: Pack, standins: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node,) = (each for each in SIBLINGS if each.base == BROKEN)
    monkeypatch.setitem(pack.classes(), BROKEN, standins.REPAIRED)
    try:
        assert _serving.enter_siblings() == [node.node_id]
        described = pack.classes()[node.node_id].GET_NODE_INFO_V1()
        groups = {group: list(described["input"].get(group, {})) for group in ("required", "optional")}
        assert groups == with_device(node, standins.REPAIRED) == {"required": ["pulid_file"], "optional": ["device"]}
        result = pack.run(node.node_id, pulid_file="a.safetensors", device="npu:1").args[0]
        assert (result["device"], result["inputs"]) == ("npu:1", {"pulid_file": "a.safetensors"})
    finally:
        pack.classes().pop(node.node_id, None)


@pytest.mark.parametrize("wanted", ["npu:0", "npu:2", "cpu"])
def test_a_pack_with_a_device_of_its_own_runs_where_it_is_told(pack: Pack, standins: ModuleType, wanted: str) -> None:
    before = standins.device, standins.offload_device
    result, handed_on = pack.run("WanVideoVAELoaderMultiGPU", model_name="a", load_device=wanted).args
    assert result["device"] == wanted
    assert handed_on == wanted
    assert result["inputs"] == {"model_name": "a"}
    assert (standins.device, standins.offload_device) == before


@pytest.mark.parametrize("wanted", ["npu:0", "npu:3", "cpu"])
def test_a_pack_that_asks_the_host_is_answered_with_the_device(pack: Pack, standins: ModuleType, wanted: str) -> None:
    current, management = torch.accelerator.current_device_index(), standins.management
    result = pack.run("MMAudioSamplerMultiGPU", steps=2, device=wanted).args[0]
    assert (result["device"], result["made_on"]) == (wanted, wanted)
    assert torch.accelerator.current_device_index() == current
    assert standins.management is management
    assert str(management.get_torch_device()) == f"npu:{current}"


def test_what_a_pack_sets_in_the_host_stays(pack: Pack, standins: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    management = standins.management

    def run(self: Any) -> tuple[str]:
        standins.management.torchspan_test = standins.management.vae_device()
        return ("done",)

    monkeypatch.setattr(standins.ByHost, "run", run)
    try:
        pack.run("MMAudioModelLoaderMultiGPU", device="npu:1")
        assert management.torchspan_test == torch.device("npu:1")
    finally:
        vars(management).pop("torchspan_test", None)


def test_a_pack_that_asks_the_host_in_its_own_way_cannot_be_sent_to_the_cpu_and_says_so(
    pack: Pack, standins: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept in ("device", "management"):
        monkeypatch.delattr(standins, kept)
    with pytest.raises(PlacementRefusedError, match=r"nodes_standins .*asks the host.*choose npu:0 instead of cpu"):
        pack.run("MMAudioSamplerMultiGPU", device="cpu")


@pytest.mark.parametrize("wanted", ["npu:1", "cpu"])
def test_all_modules_of_a_pack_are_told_and_told_back(pack: Pack, standins: ModuleType, wanted: str) -> None:
    before = standins.helpers.device
    result = pack.run("WanVideoDecodeMultiGPU", tile_x=2, tile_stride_x=1, load_device=wanted).args[0]
    assert (result["device"], result["elsewhere"], result["untouched"]) == (wanted, wanted, str(before))
    assert standins.helpers.device is before


@pytest.mark.parametrize("offload", ["cpu", "npu:2"])
def test_florence_takes_its_second_device(
    pack: Pack, standins: ModuleType, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    monkeypatch.delattr(standins, "offload_device")

    def run(self: Any, **inputs: Any) -> tuple[str, ...]:
        return (str(standins.management.unet_offload_device()),)

    monkeypatch.setattr(standins.ByHost, "run", run)
    assert pack.run("Florence2ModelLoaderMultiGPU", model="m", device="npu:1", offload_device=offload).args == (
        offload,
    )


@pytest.mark.parametrize("wanted", ["npu:2", "npu:0", "cpu"])
def test_files_are_read_to_the_device_and_not_to_the_first_of_its_kind(
    pack: Pack, standins: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str
) -> None:
    save_file({"weight": torch.ones(4)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    reader = standins.load_torch_file

    def run(self: Any) -> tuple[Any, ...]:
        where, path = standins.management.get_torch_device(), str(tmp_path / "a.safetensors")
        plain = standins.load_torch_file(path, device=where)
        told, metadata = standins.load_torch_file(path, True, where, return_metadata=True)
        return plain, told, metadata, standins.load_torch_file(path)

    monkeypatch.setattr(standins.ByHost, "run", run)
    plain, told, metadata, unasked = pack.run("MMAudioModelLoaderMultiGPU", device=wanted).args
    assert str(plain["weight"].device) == str(told["weight"].device) == wanted
    assert torch.equal(plain["weight"].cpu(), torch.ones(4))
    assert metadata == {"format": "pt"}
    assert unasked["weight"].device.type == "cpu"
    assert standins.load_torch_file is reader


def test_what_a_pack_says_of_its_values_is_said_before_anything_runs(pack: Pack, standins: ModuleType) -> None:
    given = {"vae": ["2", 0], "load_device": ["1", 0], "samples": ["3", 0], "tile_y": 1, "tile_stride_y": 1}
    prompt = {
        "1": {"class_type": "DeviceSelectorMultiGPU", "inputs": {"device": "npu:1"}},
        "2": {"class_type": "WanVideoVAELoaderMultiGPU", "inputs": {"model_name": "main_device"}},
        "3": {"class_type": "WanVideoSampler", "inputs": {}},
    }
    checked = pack.classes()["WanVideoDecodeMultiGPU"].validate_inputs
    assert checked(tile_x=2, tile_stride_x=1) is True
    for tile, said in ((2, None), (1, "tiles must overlap")):
        decode = {"class_type": "WanVideoDecodeMultiGPU", "inputs": {**given, "tile_x": tile, "tile_stride_x": 1}}
        refused = pack.check(
            {**prompt, "4": decode, "look": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}}
        )
        assert ("tiles must overlap" in refused.get("4", "")) is bool(said)


def test_inputs_that_the_device_replaces_are_filled_for_the_pack(pack: Pack, standins: ModuleType) -> None:
    encoder = pack.run("LoadWanVideoT5TextEncoderMultiGPU", model_name="m", precision="p", device="npu:1").args[0]
    assert encoder["inputs"]["load_device"] == "main_device"
    for wanted, expected in (("npu:1", "gpu"), ("cpu", "cpu")):
        embeds = pack.run("WanVideoTextEncodeMultiGPU", positive_prompt="x", load_device=wanted).args[0]
        assert embeds["inputs"] == {"positive_prompt": "x", "device": expected}


def test_a_socket_without_a_link_runs_on_the_first_device(pack: Pack, standins: ModuleType) -> None:
    assert pack.run("WanVideoTextEncodeMultiGPU", positive_prompt="x").args[0]["device"] == "npu:0"


def test_a_device_of_another_machine_is_refused(pack: Pack, standins: ModuleType) -> None:
    with pytest.raises(SiblingError, match=r"load_device = 'cuda:1' is not on this machine, which has npu:0, .* cpu"):
        pack.run("WanVideoVAELoaderMultiGPU", model_name="a", load_device="cuda:1")


def test_swapped_blocks_go_where_the_settings_say(pack: Pack, standins: ModuleType) -> None:
    settings = pack.run("WanVideoBlockSwapMultiGPU", blocks_to_swap=10, swap_device="npu:3").args[0]
    assert settings == {"blocks_to_swap": 10, "swap_device": "npu:3"}
    transformer = SimpleNamespace(offload_device="where", cache_device="it was")
    model = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=transformer),
        model_options={"transformer_options": {"block_swap_args": settings}},
    )
    where, model_said = pack.run("WanVideoSamplerMultiGPU", model=model, compute_device="npu:1").args
    assert where == {"device": "npu:1", "offload_device": "npu:3"}
    assert model_said == {"offload_device": "npu:3", "cache_device": "npu:3"}
    assert (transformer.offload_device, transformer.cache_device) == ("where", "it was")


def test_a_model_without_settings_swaps_as_it_did(pack: Pack, standins: ModuleType) -> None:
    transformer = SimpleNamespace(offload_device="cpu", cache_device="cpu")
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=transformer), model_options={})
    where, _ = pack.run("WanVideoSamplerMultiGPU", model=model, compute_device="npu:1").args
    assert where == {"device": "npu:1", "offload_device": str(standins.offload_device)}


def test_a_failure_inside_leaves_the_pack_as_it_was(pack: Pack, standins: ModuleType) -> None:
    before, current = standins.device, torch.accelerator.current_device_index()
    with pytest.raises(RuntimeError, match="the file is broken"):
        pack.run("FantasyTalkingModelLoaderMultiGPU", model="m", base_precision="p", device="npu:2")
    assert standins.device is before
    assert torch.accelerator.current_device_index() == current


def test_both_kinds_of_class_and_what_they_show(pack: Pack, standins: ModuleType) -> None:
    new = pack.run("LTXVLoaderMultiGPU", ckpt_name="a.safetensors", dtype="float32", device="npu:1")
    assert new.args[0] == {"device": "npu:1", "inputs": {"ckpt_name": "a.safetensors", "dtype": "float32"}}
    shown = pack.run("LoadFluxControlNetMultiGPU", name="b", device="npu:1")
    assert shown.ui == {"text": ("shown",)}
    assert shown.args[0]["inputs"] == {"name": "b", "unique_id": None}


def test_the_host_checks_such_nodes_like_its_own(pack: Pack, standins: ModuleType) -> None:
    prompt = with_output(
        {
            "1": {"class_type": "WanVideoVAELoaderMultiGPU", "inputs": {"model_name": "main_device"}},
            "2": {"class_type": "DeviceSelectorMultiGPU", "inputs": {"device": "npu:1"}},
            "3": {
                "class_type": "WanVideoTextEncodeMultiGPU",
                "inputs": {"positive_prompt": "x", "negative_prompt": "", "load_device": ["2", 0]},
            },
            "4": {"class_type": "LTXVLoaderMultiGPU", "inputs": {"ckpt_name": "b", "dtype": "float32"}},
        }
    )
    said = pack.check(prompt)
    if not said:
        pytest.skip("this host leaves the lists of new nodes unchecked")
    assert set(said) == {"4"}
    assert "'b' not in ['a.safetensors']" in said["4"]


def test_two_packs_with_our_ids_are_named_once(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    assert pack.load("ComfyUI-MultiGPU", OLDER_PACK)
    ours = pack.classes()["DeviceSelectorMultiGPU"]
    with caplog.at_level(logging.WARNING):
        pack.started()
    try:
        said = [record.getMessage() for record in caplog.records]
        assert [sentence for sentence in said if "node ids are offered by" in sentence] == [
            "2 node ids are offered by torchspan and ComfyUI-MultiGPU; workflows get those of "
            "custom_nodes.ComfyUI-MultiGPU. Keep one of these packs (DeviceSelectorMultiGPU, UNETLoaderMultiGPU)"
        ]
        assert ours.__module__ == "nodes_host_testing"
    finally:
        mine = _serving.mappings()
        for node_id in ("DeviceSelectorMultiGPU", "UNETLoaderMultiGPU"):
            mine[node_id].RELATIVE_PYTHON_MODULE = "custom_nodes.torchspan"  # type: ignore[attr-defined]
            pack.classes()[node_id] = mine[node_id]
        del pack.nodes.LOADED_MODULE_DIRS["ComfyUI-MultiGPU"]


def test_one_pack_alone_has_nothing_to_say() -> None:
    module = ModuleType("torchspan")
    module.NODE_CLASS_MAPPINGS = dict.fromkeys(TABLE)  # type: ignore[attr-defined]
    other = ModuleType("other")
    other.NODE_CLASS_MAPPINGS = {"KSamplerPlus": None}  # type: ignore[attr-defined]
    assert _serving.who_serves({"torchspan": module, "other": other, "none": ModuleType("none")}, {}) == []


def test_nodes_without_their_library_are_left_out_with_one_sentence(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "find_spec", lambda name: None if name == "gguf" else object())
    monkeypatch.setattr(interface, "on_prompt", lambda rewrite: True)
    monkeypatch.setattr(interface, "answer", lambda path, respond: True)
    monkeypatch.setattr(interface, "when_started", lambda callback: True)
    with caplog.at_level(logging.WARNING):
        made = _serving.mappings.__wrapped__()
    assert [record.getMessage() for record in caplog.records if "GGUF" in record.getMessage()] == [
        "20 nodes for GGUF files are left out: gguf is not installed"
    ]
    assert not [node_id for node_id in made if "GGUF" in node_id]
    assert "UNETLoaderDisTorchMultiGPU" in made
