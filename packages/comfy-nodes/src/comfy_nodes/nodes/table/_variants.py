"""Every loader in every generation of added inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from comfy_nodes.nodes.table._layouts import (
    DISTORCH2,
    DISTORCH2_ENCODER,
    LEGACY,
    LEGACY_ENCODER,
    PLAIN,
    STANDARD,
    Layout,
)
from comfy_nodes.nodes.table._loaders import CORE_LOADERS, GGUF_ENCODER_LOADERS, GGUF_MODEL_LOADERS, Loader
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._widgets import Output

REPORT: Final = Output(
    io_type="STRING",
    name="report",
    tooltip="The tables of the log with the predicted slowdown: what each device gives, what the model consists of, "
    "what lives where.",
)


def variant(loader: Loader, layout: Layout) -> NodeRow:
    """The node of one loader with one generation of added inputs.

    >>> from comfy_nodes.nodes.table._loaders import LOADERS
    >>> variant(LOADERS["UNETLoader"], STANDARD).node_id
    'UNETLoaderDisTorchMultiGPU'
    """
    return NodeRow(
        node_id=loader.name + layout.suffix,
        display_name=f"{loader.title} ({layout.label})",
        category=layout.category,
        summary=layout.summary,
        widgets=(*loader.widgets, *layout.widgets),
        outputs=(*loader.outputs, REPORT) if layout.reports else loader.outputs,
        loader=loader,
        layout=layout,
        deprecated=layout.deprecated,
    )


def variants() -> Iterator[NodeRow]:
    """Yield every loader node but those that place the parts of a checkpoint one by one."""
    models = (*CORE_LOADERS, *GGUF_MODEL_LOADERS)
    for loader in models:
        yield variant(loader, STANDARD)
    for loader in (*models, *GGUF_ENCODER_LOADERS):
        yield variant(loader, DISTORCH2_ENCODER if loader.is_encoder else DISTORCH2)
        yield variant(loader, PLAIN)
    for loader in GGUF_MODEL_LOADERS:
        yield variant(loader, LEGACY)
    for loader in GGUF_ENCODER_LOADERS:
        yield variant(loader, LEGACY_ENCODER)
