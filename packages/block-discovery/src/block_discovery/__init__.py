"""Find a model's repeated blocks, from a module or from a file header alone."""

from block_discovery._tree import BlockTree, TensorInfo, Unit, UnitKind

__all__ = ["BlockTree", "TensorInfo", "Unit", "UnitKind"]
