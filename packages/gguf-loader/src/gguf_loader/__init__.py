"""GGUF checkpoints: read, share and dequantise every ggml type, exactly."""

from ._arrays import GgufArray
from ._errors import (
    GgufError,
    GgufFormatError,
    GgufKeyError,
    GgufMetadataError,
    GgufPairingError,
    GgufTokenizerError,
    GgufTypeError,
    GgufUnsupportedError,
)
from ._format import ValueType
from ._header import GgufHeader, read_header
from ._loader import GgufCheckpoint, get_gguf_metadata, gguf_sd_loader, load_gguf
from ._metadata import GgufMetadata, MetadataValue
from ._reader import GgufFile, open_gguf
from ._tensors import TensorInfo
from ._text_encoder import GgufTextEncoder, load_text_encoder
from ._tokenizers import RebuiltTokenizer, rebuild_tokenizer
from ._types import GGML_TYPES, GgmlType, type_by_id, type_by_name

__all__ = [
    "GGML_TYPES",
    "GgmlType",
    "GgufArray",
    "GgufCheckpoint",
    "GgufError",
    "GgufFile",
    "GgufFormatError",
    "GgufHeader",
    "GgufKeyError",
    "GgufMetadata",
    "GgufMetadataError",
    "GgufPairingError",
    "GgufTextEncoder",
    "GgufTokenizerError",
    "GgufTypeError",
    "GgufUnsupportedError",
    "MetadataValue",
    "RebuiltTokenizer",
    "TensorInfo",
    "ValueType",
    "get_gguf_metadata",
    "gguf_sd_loader",
    "load_gguf",
    "load_text_encoder",
    "open_gguf",
    "read_header",
    "rebuild_tokenizer",
    "type_by_id",
    "type_by_name",
]
