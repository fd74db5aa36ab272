"""Checkpoints whose model, text encoder and VAE are placed one by one, and the helper nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from comfy_nodes import host
from comfy_nodes.host import PlacementRequest
from comfy_nodes.host.app import folders, interface
from comfy_nodes.nodes._controls import read_controls
from comfy_nodes.nodes.running import _load
from comfy_nodes.nodes.running._output import loaded_output, node_output
from comfy_nodes.nodes.running._request import placement
from comfy_nodes.nodes.table._loaders import LOADERS
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._singles import (
    CHECKPOINT_PARTS,
    CHECKPOINT_PARTS_DISTORCH2,
    DEVICE_SELECTOR,
    UNET_LOW_PRECISION,
)

Execute = Callable[[type, Mapping[str, Any]], Any]


def part_request(row: NodeRow, part: str, inputs: Mapping[str, Any]) -> PlacementRequest:
    """The placement that a checkpoint node's inputs ask for one part.

    Args:
        row: the node.
        part: ``"unet"``, ``"clip"`` or ``"vae"``, which its inputs have before their names.
        inputs: all inputs of the node.

    Raises:
        NodeError: a value is of a kind that the input cannot have.
        alloc_spec.AllocSpecError: the allocation cannot be read, or contradicts itself.
    """
    said = {name.removeprefix(f"{part}_"): value for name, value in inputs.items() if name.startswith(f"{part}_")}
    # One switch for the whole node; the first part to be loaded makes the room.
    ejects = {"eject_models": inputs.get("eject_models", row.default_of("eject_models"))} if part == "unet" else {}
    devices = host.device_names()
    default_gb = row.default_of(f"{part}_virtual_vram_gb")
    controls = read_controls(said | ejects, devices)
    return placement(controls, devices, default_gb=float(default_gb) if isinstance(default_gb, float) else 0.0)


def _checkpoint(row: NodeRow) -> Execute:
    def execute(cls: type, inputs: Mapping[str, Any]) -> Any:
        requests = [part_request(row, part, inputs) for part in ("unet", "clip", "vae")]
        path = folders.full_path("checkpoints", inputs["ckpt_name"])
        bar = interface.progress_bar(1)
        loaded = host.load_checkpoint(
            path,
            requests[0],
            clip_request=requests[1],
            vae_request=requests[2],
            embedding_directory=folders.embedding_directory(),
        )
        bar.update(1)
        return loaded_output(row, loaded)

    return execute


def _unet_low_precision(cls: type, inputs: Mapping[str, Any]) -> Any:
    return loaded_output(UNET_LOW_PRECISION, _load.run(LOADERS["UNETLoader"], inputs, PlacementRequest()))


def _select_device(cls: type, inputs: Mapping[str, Any]) -> Any:
    return node_output(inputs["device"])


EXECUTES: Final[Mapping[str, Execute]] = {
    CHECKPOINT_PARTS.node_id: _checkpoint(CHECKPOINT_PARTS),
    CHECKPOINT_PARTS_DISTORCH2.node_id: _checkpoint(CHECKPOINT_PARTS_DISTORCH2),
    UNET_LOW_PRECISION.node_id: _unet_low_precision,
    DEVICE_SELECTOR.node_id: _select_device,
}
"""Node id -> what it runs."""
