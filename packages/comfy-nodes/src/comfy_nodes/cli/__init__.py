"""The `torchspan` command: one file a subcommand, each of which loads torch only when it needs it.

May import: contract, nodes.
"""

from comfy_nodes.cli._main import main

__all__ = ["main"]
