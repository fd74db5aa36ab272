"""Nodes of other packs on the real server with the real packs: which exist, what they show, and where they run.

`comfyui_packs` says where the packs are looked for; each that is not there is skipped by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_nodes.nodes.table._siblings import DEVICE_TYPE, SIBLINGS, SiblingNode
from comfyui_packs import (
    OURS,
    Checkout,
    checkouts,
    described,
    every_checkout,
    failed_imports,
    pack_server,
    packs_folder,
)
from comfyui_server import Finished, Server
from comfyui_workflows import Node, Workflow, node

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]
DATA = Path(__file__).parent / "data" / "sibling_packs.json"
KNOWN: dict[str, dict[str, Any]] = {each["commit"]: each for each in json.loads(DATA.read_text())["packs"]}


@pytest.fixture(scope="module", params=every_checkout())
def checkout(request: pytest.FixtureRequest) -> Checkout:
    """Every version of every pack that is there."""
    found: Checkout = request.param
    return found


@pytest.fixture(scope="module")
def server(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The host on three simulated accelerators with our pack, and the other pack loaded after it."""
    base = tmp_path_factory.mktemp("packs") / "base"
    with pack_server(base, {checkout.pack: checkout}, ours_first=True, devices=3) as running:
        failed = failed_imports(running)
        assert OURS not in failed, failed
        if checkout.pack in failed:
            pytest.skip(f"the host cannot import {checkout.folder.name} ({checkout.commit}): {failed[checkout.pack]}")
        yield running


@pytest.fixture(scope="module")
def offered(server: Server) -> dict[str, Any]:
    """What the host tells about every node."""
    found: dict[str, Any] = server.get("/object_info")
    return found


def present(checkout: Checkout, offered: dict[str, Any]) -> list[SiblingNode]:
    """The rows of our table whose node this version of the pack has."""
    return [row for row in checkout.rows if row.base in offered]


def test_there_is_a_node_of_ours_for_each_of_the_packs_that_our_table_names(
    checkout: Checkout, offered: dict[str, Any]
) -> None:
    assert {row.node_id for row in SIBLINGS if row.node_id in offered} == {
        row.node_id for row in present(checkout, offered)
    }


def test_rows_without_a_node_in_this_version_are_those_that_are_known(
    checkout: Checkout, offered: dict[str, Any], record_property: Any
) -> None:
    absent = [row.base for row in checkout.rows if row.base not in offered]
    record_property("absent", absent)
    print(f"{checkout.folder.name} ({checkout.commit}): not in this version: {', '.join(absent) or 'none'}")
    if checkout.commit not in KNOWN:
        pytest.skip(f"{checkout.folder.name}: nothing is known of {checkout.commit}; it lacks {absent}")
    assert absent == KNOWN[checkout.commit]["absent"]
    not_hidden = [
        f"{row.base}.{name}"
        for row in present(checkout, offered)
        for name in row.hides
        if name not in described(offered, row.base)
    ]
    assert not_hidden == KNOWN[checkout.commit]["without_hidden"]
    assert KNOWN[checkout.commit]["pack"] == checkout.pack


def test_inputs_are_those_of_the_pack_with_ours_in_their_place(checkout: Checkout, offered: dict[str, Any]) -> None:
    for row in present(checkout, offered):
        theirs, ours = described(offered, row.base), described(offered, row.node_id)
        added = [name for name in (row.device, row.offload) if name]
        replaced = {*row.hides, *added}
        assert [name for name in ours if name not in added] == [name for name in theirs if name not in replaced]
        for name, told in ours.items():
            if name not in added:
                assert told == theirs[name], f"{name} of {row.node_id}"
        group, kind, _ = ours[row.device]
        assert group == ("required" if row.required else "optional"), row.node_id
        assert kind == (DEVICE_TYPE if row.way == "socket" else ["npu:0", "npu:1", "npu:2", "cpu"]), row.node_id


def test_the_device_stands_where_the_table_says(checkout: Checkout, offered: dict[str, Any]) -> None:
    for row in present(checkout, offered):
        ours = described(offered, row.node_id)
        group = [name for name, (where, _, _) in ours.items() if where == ours[row.device][0]]
        place = group.index(row.device)
        if row.after is None:
            assert group[place:] == [name for name in (row.device, row.offload) if name], row.node_id
        else:
            assert row.after in ours, f"{row.after} of {row.base}"
            assert place == (group.index(row.after) + 1 if row.after in group else 0), row.node_id


def test_outputs_are_those_of_the_pack_and_the_device(checkout: Checkout, offered: dict[str, Any]) -> None:
    for row in present(checkout, offered):
        theirs, ours = offered[row.base], offered[row.node_id]
        more: list[list[Any]] = [[DEVICE_TYPE], [row.device], [False]] if row.emits_device else [[], [], []]
        for key, added in zip(("output", "output_name", "output_is_list"), more, strict=True):
            assert ours[key] == [*theirs[key], *added], f"{key} of {row.node_id}"
        assert ours["output_node"] == theirs["output_node"]
        assert ours["category"] == row.category


def test_nothing_fails_while_the_host_starts(checkout: Checkout, server: Server) -> None:
    assert not [line for line in server.log.splitlines() if "is left out" in line and checkout.pack in line]


def looked_at(value: str, output: int = 0) -> Node:
    """The probe that tells where the weights of a value are."""
    return node("TorchspanProbeWhere", value=[value, output])


def run(server: Server, workflow: Workflow) -> tuple[Finished, dict[str, Any]]:
    """Run a workflow; what each probe in it saw, after it is sure that no choice outlives its node."""
    finished = server.run(workflow)
    assert not finished.message, f"{finished.message}\n{server.log[-6000:]}"
    seen = {name: output["where"][0] for name, output in finished.outputs.items() if "where" in output}
    for told in seen.values():
        assert (told["current"], told["exchanged"]) == ("npu:0", [])
        assert set(told["globals"]) <= {"npu:0"}
    return finished, seen


def where(server: Server, loader: Node, output: int = 0) -> set[str]:
    """The devices of what a loader loads."""
    _, seen = run(server, {"model": loader, "look": looked_at("model", output)})
    return set(seen["look"]["bytes"])


def wan_workflow(*, ours: bool, swap: bool = False, decode: bool = False) -> Workflow:
    """From a model to a latent and, with our nodes alone, to a picture.

    With our nodes the model computes on `npu:1`, and the decoder and swapped blocks are on `npu:2`.
    """
    here = {"compute_device": "npu:1"} if ours else {}
    linked = {"compute_device": ["model", 1]} if ours else {}
    suffix = "MultiGPU" if ours else ""
    swapping = node(f"WanVideoBlockSwap{suffix}", blocks_to_swap=20, offload_img_emb=False, offload_txt_emb=False)
    swapping["inputs"] |= {"vace_blocks_to_swap": 0} | ({"swap_device": "npu:2"} if ours else {})
    model = node(
        f"WanVideoModelLoader{suffix}",
        model="tiny.safetensors",
        base_precision="fp32",
        quantization="disabled",
        load_device="main_device",
        attention_mode="sdpa",
        **here,
        **({"block_swap_args": ["swap", 0]} if swap else {}),
    )
    sample = node(
        f"WanVideoSampler{suffix}",
        model=["model", 0],
        image_embeds=["size", 0],
        text_embeds=["text", 0],
        steps=2,
        cfg=1.0,
        shift=5.0,
        seed=1,
        force_offload=False,
        scheduler="unipc",
        riflex_freq_index=0,
        **linked,
    )
    workflow = {
        "model": model,
        "sample": sample,
        "size": node("WanVideoEmptyEmbeds", width=64, height=64, num_frames=1),
        "text": node("TorchspanProbeText", device="npu:1" if ours else "npu:0"),
        "loaded": looked_at("model"),
        "sampled": node("TorchspanProbeWhere", value=["model", 0], after=["sample", 0]),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="wan"),
    }
    if swap:
        workflow["swap"] = swapping
    if decode:
        tiles = {"tile_x": 272, "tile_y": 272, "tile_stride_x": 144, "tile_stride_y": 128, "enable_vae_tiling": False}
        workflow["vae"] = node(
            "WanVideoTinyVAELoaderMultiGPU", model_name="tiny.safetensors", precision="fp16", load_device="npu:2"
        )
        workflow["decode"] = node(
            "WanVideoDecodeMultiGPU", vae=["vae", 0], load_device=["vae", 1], samples=["sample", 0], **tiles
        )
        workflow["decoded"] = node("TorchspanProbeWhere", value=["vae", 0], after=["decode", 0])
        workflow["picture"] = node("SaveImage", images=["decode", 0], filename_prefix="wan")
    return workflow


def wan_video(server: Server, offered: dict[str, Any]) -> None:
    """The latent is that of the pack's own nodes; the model, what it swaps and the decoder are where they are told."""
    if "WanVideoTinyVAELoader" not in offered:
        # Versions before the small decoder mix number formats when they sample anywhere but on CUDA.
        assert where(server, wan_workflow(ours=True)["model"]) == {"npu:1"}
        return
    stock = server.run(wan_workflow(ours=False))
    assert not stock.message, server.log[-4000:]
    # Some versions swap blocks on CUDA alone; what the pack's own nodes cannot do here, ours are not asked for.
    swaps = not server.run(wan_workflow(ours=False, swap=True)).message
    for swap in (False, True)[: 1 + swaps]:
        finished, seen = run(server, wan_workflow(ours=True, swap=swap, decode=not swap))
        assert torch.equal(server.latent(finished), server.latent(stock))
        assert set(seen["loaded"]["bytes"]) <= {"npu:1", "npu:2"}
        assert set(seen["sampled"]["bytes"]) == ({"npu:1", "npu:2"} if swap else {"npu:1"})
        assert swap or set(seen["decoded"]["bytes"]) == {"npu:2"}
    # The host drops an output that it refuses and runs the others, so that here there is no other.
    outputs = ("save", "loaded", "sampled", "decoded")
    workflow = {name: each for name, each in wan_workflow(ours=True, decode=True).items() if name not in outputs}
    workflow["decode"]["inputs"]["tile_x"] = 40
    assert "Tile width must be larger" in server.run(workflow).message


def florence2(server: Server, offered: dict[str, Any]) -> None:
    """The weights wait on the second device."""
    loader = node("Florence2ModelLoaderMultiGPU", model="tiny-florence", precision="fp32", attention="eager")
    for offload in ("npu:2", "cpu"):
        loader["inputs"] |= {"device": "npu:1", "offload_device": offload}
        assert where(server, loader) == {offload}


def x_flux(server: Server, offered: dict[str, Any]) -> None:
    """The ControlNet is on the device that is chosen, the cpu too."""
    for device in ("npu:1", "cpu", "npu:0"):
        loader = node(
            "LoadFluxControlNetMultiGPU", model_name="flux-dev", controlnet_path="tiny.safetensors", device=device
        )
        assert where(server, loader) == {device}


def hunyuan(server: Server, offered: dict[str, Any]) -> None:
    """The VAE is on the device that is chosen."""
    loader = node("HyVideoVAELoaderMultiGPU", model_name="tiny.safetensors", precision="bf16", device="npu:2")
    assert where(server, loader) == {"npu:2"}


def ltx_video(server: Server, offered: dict[str, Any]) -> None:
    """The model and its VAE are on the device that is chosen."""
    loader = node("LTXVLoaderMultiGPU", ckpt_name="tiny.safetensors", dtype="float32", device="npu:1")
    assert where(server, loader) == where(server, loader, 1) == {"npu:1"}


def mmaudio(server: Server, offered: dict[str, Any]) -> None:
    """This loader always waits on the cpu; it is the sampler that takes its model to a device."""
    loader = node("MMAudioModelLoaderMultiGPU", mmaudio_model="tiny.safetensors", base_precision="fp16", device="npu:1")
    assert where(server, loader) == {"cpu"}


def pulid(server: Server, offered: dict[str, Any]) -> None:
    """This loader always waits on the cpu."""
    loader = node("PulidModelLoaderMultiGPU", pulid_file="tiny.safetensors", device="npu:1")
    assert where(server, loader) == {"cpu"}


RUNS: dict[str, Callable[[Server, dict[str, Any]], None]] = {
    "ComfyUI-WanVideoWrapper": wan_video,
    "ComfyUI-Florence2": florence2,
    "x-flux-comfyui": x_flux,
    "ComfyUI-HunyuanVideoWrapper": hunyuan,
    "ComfyUI-LTXVideo": ltx_video,
    "ComfyUI-MMAudio": mmaudio,
    "PuLID_ComfyUI": pulid,
}


def test_nodes_run_on_the_chosen_device_and_later_ones_do_not(
    checkout: Checkout, server: Server, offered: dict[str, Any]
) -> None:
    if checkout.pack not in RUNS:
        pytest.skip(f"nothing of {checkout.pack} runs on small weights without CUDA")
    if not present(checkout, offered):
        pytest.skip(f"{checkout.folder.name} has none of the nodes")
    server.post("/torchspan-packs/weights", {"pack": checkout.pack})
    RUNS[checkout.pack](server, offered)


def test_packs_that_are_loaded_before_ours_have_the_same_nodes(tmp_path: Path) -> None:
    others = {each.pack: each for row in SIBLINGS for each in checkouts(row.pack)[-1:]}
    if not others:
        pytest.skip(f"no checkout of any pack in {packs_folder()}")
    with pack_server(tmp_path / "base", others, ours_first=False) as server:
        offered = server.get("/object_info")
        failed = failed_imports(server)
        late = [line for line in server.log.splitlines() if "nodes for packs that were loaded later" in line]
    there = {row.node_id for row in SIBLINGS if row.base in offered}
    assert there, failed
    assert there == {row.node_id for row in SIBLINGS if row.node_id in offered}
    assert not late
    assert {row.pack for row in SIBLINGS if row.node_id in there} | set(failed) >= {
        pack for pack, each in others.items() if KNOWN.get(each.commit, {}).get("absent") == []
    }


def test_packs_that_are_not_loaded_are_not_touched(tmp_path: Path) -> None:
    others = {each.pack: each for row in SIBLINGS for each in checkouts(row.pack)[:1]}
    with pack_server(tmp_path / "base", others, ours_first=True, loaded=False) as server:
        offered = server.get("/object_info")
        modules = server.state()["modules"]
    assert "UNETLoaderDisTorchMultiGPU" in offered
    assert not [row.node_id for row in SIBLINGS if row.node_id in offered or row.base in offered]
    assert not [name for name in modules if any(pack in name for pack in others)]
    assert "ray" not in modules
