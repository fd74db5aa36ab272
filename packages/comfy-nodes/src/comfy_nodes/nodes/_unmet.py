"""Nodes that this host cannot run, by the host contract: they are left out, and everything else works."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache

from comfy_nodes.contract import EVERY_NODE, OTHER_PACKS, Broken, Checkout, check, load_contract
from comfy_nodes.host.app import interface
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE

_log = logging.getLogger(__name__)


def disabled(broken: Iterable[Broken], table: Mapping[str, NodeRow]) -> dict[str, tuple[str, ...]]:
    """Node id -> what it lacks, for every node that cannot run; those of other packs included.

    Args:
        broken: what a host does not have, or has in another way.
        table: our own nodes.
    """
    found: dict[str, tuple[str, ...]] = {}
    for each in broken:
        for node_id in ids_of(each, table) if each.disables else ():
            found[node_id] = (*found.get(node_id, ()), f"{each.need.name}: {each.reason}")
    return found


def ids_of(broken: Broken, table: Mapping[str, NodeRow]) -> tuple[str, ...]:
    """Ids of the nodes that need what is broken."""
    needed_by = set(broken.need.needed_by)
    own = [node_id for node_id, row in table.items() if EVERY_NODE in needed_by or row.runs in needed_by]
    siblings = [node.node_id for node in SIBLINGS if needed_by & {EVERY_NODE, OTHER_PACKS}]
    return (*own, *siblings)


@cache
def disabled_here() -> frozenset[str]:
    """Ids of the nodes that the running host cannot run, with one line in the log that names what it lacks.

    What its source does not show is looked for in the process before a node is given up.
    """
    try:
        broken = [
            each for each in check(load_contract(), Checkout(interface.program_folder())) if not each.need.optional
        ]
    except (OSError, ValueError) as error:
        _log.warning("this ComfyUI could not be compared with what the nodes use of it: %s", error)
        return frozenset()
    broken = [
        each for each in broken if each.need.kind != "symbol" or each.is_present or not interface.has(each.need.name)
    ]
    found = disabled(broken, TABLE)
    if broken:
        reasons = "; ".join(f"{each.need.name}: {each.reason}" for each in broken)
        lost = f"{len(found)} nodes are left out ({', '.join(found)})" if found else "all nodes stay, and one may fail"
        _log.warning("this ComfyUI has changed: %s; %s", reasons, lost)
    return frozenset(found)
