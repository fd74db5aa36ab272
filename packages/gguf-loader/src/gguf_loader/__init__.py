"""GGUF checkpoints: read, share and dequantise every ggml type, exactly."""

from ._backend import Backend
from ._compat import get_gguf_metadata, gguf_sd_loader
from ._errors import (
    GgufError,
    GgufFormatError,
    GgufKeyError,
    GgufLoraError,
    GgufMetadataError,
    GgufModelError,
    GgufPackedError,
    GgufPairingError,
    GgufTokenizerError,
    GgufTypeError,
    GgufUnsupportedError,
)
from ._load import GgufCheckpoint, load_gguf
from ._scratch import ScratchPool
from ._types import GGML_TYPES, GgmlType, type_by_id, type_by_name
from .dequant._dequantize import dequantize
from .file._arrays import GgufArray
from .file._format import ValueType
from .file._header import GgufHeader, read_header
from .file._mapping import GgufFile, open_gguf
from .file._metadata import GgufMetadata, MetadataValue
from .file._tensors import TensorInfo
from .packed._config import DequantConfig
from .packed._layers import GgufConv1d, GgufConv2d, GgufConv3d, GgufEmbedding, GgufLinear
from .packed._linear import packed_embedding, packed_linear
from .packed._load import LoadReport, configure, load_packed, packed_layers
from .packed._lora import add_lora, lora_from_state_dict, lora_strengths, remove_lora, set_lora_strength
from .packed._low_rank import LowRank
from .packed._tensor import PackedTensor
from .text._encoder import GgufTextEncoder, load_text_encoder
from .text._tokenizers import RebuiltTokenizer, rebuild_tokenizer

__all__ = [
    "GGML_TYPES",
    "Backend",
    "DequantConfig",
    "GgmlType",
    "GgufArray",
    "GgufCheckpoint",
    "GgufConv1d",
    "GgufConv2d",
    "GgufConv3d",
    "GgufEmbedding",
    "GgufError",
    "GgufFile",
    "GgufFormatError",
    "GgufHeader",
    "GgufKeyError",
    "GgufLinear",
    "GgufLoraError",
    "GgufMetadata",
    "GgufMetadataError",
    "GgufModelError",
    "GgufPackedError",
    "GgufPairingError",
    "GgufTextEncoder",
    "GgufTokenizerError",
    "GgufTypeError",
    "GgufUnsupportedError",
    "LoadReport",
    "LowRank",
    "MetadataValue",
    "PackedTensor",
    "RebuiltTokenizer",
    "ScratchPool",
    "TensorInfo",
    "ValueType",
    "add_lora",
    "configure",
    "dequantize",
    "get_gguf_metadata",
    "gguf_sd_loader",
    "load_gguf",
    "load_packed",
    "load_text_encoder",
    "lora_from_state_dict",
    "lora_strengths",
    "open_gguf",
    "packed_embedding",
    "packed_layers",
    "packed_linear",
    "read_header",
    "rebuild_tokenizer",
    "remove_lora",
    "set_lora_strength",
    "type_by_id",
    "type_by_name",
]
