"""Entering the pack into the host: which ids it offers, who serves them, and what it asks of the server."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from comfy_nodes import host
from comfy_nodes.host.app import interface
from comfy_nodes.nodes._unmet import disabled_here
from comfy_nodes.nodes.older._opened import reopen
from comfy_nodes.nodes.older._rewrite import rewrite_prompt
from comfy_nodes.nodes.running._classes import node_class
from comfy_nodes.nodes.running._sibling_class import sibling_class
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE

_log = logging.getLogger(__name__)
REOPEN = "/torchspan/api/v1/reopen"
"""Where the pack's extension of the editor asks for older workflows in today's words."""


@cache
def mappings() -> dict[str, type]:
    """The classes of every node that this host can have now, by id.

    Nodes of packs that are loaded after this one are entered when the server starts. Asked for again, the same classes
    are given and nothing is entered twice.
    """
    left_out = {row.node_id for row in _without_dependency()} | disabled_here()
    classes = {node_id: node_class(row) for node_id, row in TABLE.items() if node_id not in left_out}
    classes |= _sibling_classes(left_out)
    interface.on_prompt(_rewrite)
    interface.answer(REOPEN, _reopen)
    interface.when_started(_started)
    return classes


def display_names() -> dict[str, str]:
    """Display names by id, for every node of the table."""
    return {node_id: row.display_name for node_id, row in TABLE.items() if node_id in mappings()}


def enter_siblings() -> list[str]:
    """Enter the nodes of packs that were loaded after this one into the host; return their ids."""
    registered = interface.registered_nodes()
    late = _sibling_classes({*registered, *disabled_here()})
    module = getattr(registered.get("DeviceSelectorMultiGPU"), "RELATIVE_PYTHON_MODULE", None)
    for node_id, made in late.items():
        made.RELATIVE_PYTHON_MODULE = module  # type: ignore[attr-defined]
        registered[node_id] = made
    return sorted(late)


def who_serves(packs: Mapping[str, ModuleType], registered: Mapping[str, Any]) -> list[str]:
    """Sentences about ids that several packs offer: who offers them, and whose nodes a workflow gets.

    Args:
        packs: the packs that the host has loaded, by name, in order.
        registered: the host's nodes by id.
    """
    offers = {
        name: set(TABLE).intersection(getattr(module, "NODE_CLASS_MAPPINGS", ())) for name, module in packs.items()
    }
    offering = [name for name, ids in offers.items() if ids]
    if len(offering) < 2:
        return []
    shared = [node_id for node_id in TABLE if sum(node_id in ids for ids in offers.values()) > 1]
    servers = {str(getattr(registered.get(node_id), "RELATIVE_PYTHON_MODULE", "another pack")) for node_id in shared}
    if not shared:
        return []
    examples = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
    return [
        f"{len(shared)} node ids are offered by {' and '.join(offering)}; workflows get those of "
        f"{' and '.join(sorted(servers))}. Keep one of these packs ({examples})"
    ]


def _sibling_classes(without: Collection[str]) -> dict[str, type]:
    """Classes for nodes of other packs that are loaded, but for some ids; one that cannot be made is logged."""
    there = interface.registered_nodes()
    made = {}
    for node in SIBLINGS:
        if node.base not in there or node.node_id in without:
            continue
        try:
            made[node.node_id] = sibling_class(node)
        except Exception as error:  # noqa: BLE001 - any failure of another pack's code must leave our own nodes alone
            _log.warning("%s is left out: %s of %s cannot be read (%s)", node.node_id, node.base, node.pack, error)
    return made


def _without_dependency() -> list[NodeRow]:
    """Nodes whose library is not installed, which is said once for all of them."""
    rows = [row for row in TABLE.values() if row.loader is not None and row.loader.gguf]
    missing = [name for name in ("gguf", "gguf_loader") if find_spec(name) is None]
    if not missing:
        return []
    names = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
    _log.warning("%d nodes for GGUF files are left out: %s not installed", len(rows), names)
    return rows


def _started() -> None:
    late = enter_siblings()
    if late:
        _log.info("%d nodes for packs that were loaded later: %s", len(late), ", ".join(late))
    for sentence in who_serves(interface.loaded_packs(), interface.registered_nodes()):
        _log.warning("%s", sentence)


def _rewrite(prompt: dict[str, Any]) -> dict[str, Any]:
    return rewrite_prompt(prompt, TABLE, host.device_names())


def _reopen(document: dict[str, Any]) -> dict[str, Any]:
    return reopen(document, TABLE, host.device_names())
