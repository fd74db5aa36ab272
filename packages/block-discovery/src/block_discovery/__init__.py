"""Find a model's repeated blocks, from a module or from a file header alone."""

from block_discovery._discover import discover
from block_discovery._errors import (
    BlockDiscoveryError,
    HeaderError,
    InvalidFractionError,
    InvalidJsonError,
    InvalidTensorError,
    InvalidTreeError,
    ModelWithoutParametersError,
    UninitializedModelError,
    UnknownUnitError,
)
from block_discovery._tree import BlockTree, TensorInfo, Unit, UnitKind

__all__ = [
    "BlockDiscoveryError",
    "BlockTree",
    "HeaderError",
    "InvalidFractionError",
    "InvalidJsonError",
    "InvalidTensorError",
    "InvalidTreeError",
    "ModelWithoutParametersError",
    "TensorInfo",
    "UninitializedModelError",
    "Unit",
    "UnitKind",
    "UnknownUnitError",
    "discover",
]
