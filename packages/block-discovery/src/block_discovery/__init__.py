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
from block_discovery._files import discover_file
from block_discovery._names import discover_names
from block_discovery._safetensors import SafetensorsHeader, read_safetensors_header
from block_discovery._shards import read_safetensors_index
from block_discovery._trace import CallTrace, trace_calls
from block_discovery._tree import BlockTree, TensorInfo, Unit, UnitKind

__all__ = [
    "BlockDiscoveryError",
    "BlockTree",
    "CallTrace",
    "HeaderError",
    "InvalidFractionError",
    "InvalidJsonError",
    "InvalidTensorError",
    "InvalidTreeError",
    "ModelWithoutParametersError",
    "SafetensorsHeader",
    "TensorInfo",
    "UninitializedModelError",
    "Unit",
    "UnitKind",
    "UnknownUnitError",
    "discover",
    "discover_file",
    "discover_names",
    "read_safetensors_header",
    "read_safetensors_index",
    "trace_calls",
]
