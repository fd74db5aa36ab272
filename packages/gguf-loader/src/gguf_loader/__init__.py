"""GGUF checkpoints: read, share and dequantise every ggml type, exactly."""

from ._arrays import GgufArray
from ._backend import Backend
from ._config import DequantConfig
from ._convert import LoadReport, configure, load_packed, packed_layers
from ._dequant import dequantize
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
from ._format import ValueType
from ._header import GgufHeader, read_header
from ._layers import GgufConv1d, GgufConv2d, GgufConv3d, GgufEmbedding, GgufLinear
from ._linear import packed_embedding, packed_linear
from ._loader import GgufCheckpoint, get_gguf_metadata, gguf_sd_loader, load_gguf
from ._lora import add_lora, lora_from_state_dict, lora_strengths, remove_lora, set_lora_strength
from ._low_rank import LowRank
from ._metadata import GgufMetadata, MetadataValue
from ._packed import PackedTensor
from ._reader import GgufFile, open_gguf
from ._scratch import ScratchPool
from ._tensors import TensorInfo
from ._text_encoder import GgufTextEncoder, load_text_encoder
from ._tokenizers import RebuiltTokenizer, rebuild_tokenizer
from ._types import GGML_TYPES, GgmlType, type_by_id, type_by_name

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
