"""A row of the table: one node as data."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_nodes.nodes.table._layouts import Layout
from comfy_nodes.nodes.table._loaders import Loader
from comfy_nodes.nodes.table._widgets import Output, Widget


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node.

    Attributes:
        node_id: what workflows call it; never changes.
        display_name: what people read.
        category: menu entry.
        summary: its purpose, in a sentence or two.
        widgets: its inputs, in the order of saved workflows.
        outputs: its outputs, in order.
        loader: the loader that it runs, if it is one.
        layout: the generation of its added inputs, if it is a loader.
        deprecated: superseded by another node; works all the same.
        is_output: runs without anything behind it.
    """

    node_id: str
    display_name: str
    category: str
    summary: str
    widgets: tuple[Widget, ...]
    outputs: tuple[Output, ...]
    loader: Loader | None = None
    layout: Layout | None = None
    deprecated: bool = False
    is_output: bool = False

    @property
    def runs(self) -> str:
        """What it does, as the host contract calls it: its loader, or the node itself."""
        return self.node_id if self.loader is None else self.loader.name

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(widget.name for widget in self.widgets)

    def default_of(self, name: str) -> object:
        """Default of an input; None where it has none, or there is no such input."""
        return next((widget.default for widget in self.widgets if widget.name == name), None)
