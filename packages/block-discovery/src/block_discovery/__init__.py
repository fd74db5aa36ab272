"""Find a model's repeated blocks, from a module or from a file header alone."""

from importlib import import_module
from typing import TYPE_CHECKING

from block_discovery._errors import (
    BlockDiscoveryError,
    ChangedFileError,
    HeaderError,
    InvalidFractionError,
    InvalidJsonError,
    InvalidTensorError,
    InvalidTreeError,
    ModelWithoutParametersError,
    NotRegularFileError,
    UninitializedModelError,
    UnknownUnitError,
)
from block_discovery._files import discover_file
from block_discovery._json import decode_json, encode_json, parse_json
from block_discovery._names import discover_names
from block_discovery._regular import FileStamp, open_regular, stamp_of
from block_discovery._safetensors import SafetensorsHeader, read_safetensors_header
from block_discovery._shards import read_safetensors_index
from block_discovery._tree import BlockTree, TensorInfo, Unit, UnitKind

if TYPE_CHECKING:
    from block_discovery._discover import discover
    from block_discovery._trace import CallTrace, trace_calls
else:
    _NEED_TORCH = {"CallTrace": "_trace", "discover": "_discover", "trace_calls": "_trace"}

    def __getattr__(name: str) -> object:
        """Import what works on modules, and with it torch, when it is first asked for; headers do without."""
        if name not in _NEED_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
        return value


__all__ = [
    "BlockDiscoveryError",
    "BlockTree",
    "CallTrace",
    "ChangedFileError",
    "FileStamp",
    "HeaderError",
    "InvalidFractionError",
    "InvalidJsonError",
    "InvalidTensorError",
    "InvalidTreeError",
    "ModelWithoutParametersError",
    "NotRegularFileError",
    "SafetensorsHeader",
    "TensorInfo",
    "UninitializedModelError",
    "Unit",
    "UnitKind",
    "UnknownUnitError",
    "decode_json",
    "discover",
    "discover_file",
    "discover_names",
    "encode_json",
    "open_regular",
    "parse_json",
    "read_safetensors_header",
    "read_safetensors_index",
    "stamp_of",
    "trace_calls",
]
