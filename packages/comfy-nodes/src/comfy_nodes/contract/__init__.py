"""The host contract: what the pack touches of ComfyUI, as a file, and whether a checkout still has it.

`tools/host_contract.py` writes the file from the code. A checkout is read as source, nothing of it is imported. So the
command, the pack at its start and a build server ask the same question in the same way.

May import: nothing.
"""

from __future__ import annotations

from comfy_nodes.contract._check import Broken, check
from comfy_nodes.contract._checkout import Checkout
from comfy_nodes.contract._needs import EVERY_NODE, OTHER_PACKS, Contract, Need, load_contract
from comfy_nodes.contract._signature import Call, Signature

__all__ = [
    "EVERY_NODE",
    "OTHER_PACKS",
    "Broken",
    "Call",
    "Checkout",
    "Contract",
    "Need",
    "Signature",
    "check",
    "load_contract",
]
