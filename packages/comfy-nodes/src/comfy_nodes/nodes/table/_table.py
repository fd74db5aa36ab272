"""The one table of Torchspan's own nodes, by id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._singles import SINGLES
from comfy_nodes.nodes.table._variants import variants

TABLE: Final[Mapping[str, NodeRow]] = MappingProxyType({row.node_id: row for row in (*SINGLES, *variants())})
"""Node id -> node. Those of other packs are in `SIBLINGS`: what they take is known only when their pack is loaded."""
