"""GGUF checkpoints: read, share and dequantise every ggml type, exactly."""

from importlib import import_module
from typing import TYPE_CHECKING

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
from ._types import GGML_TYPES, GgmlType, type_by_id, type_by_name
from .file._arrays import GgufArray
from .file._format import ValueType
from .file._header import GgufHeader, read_header
from .file._metadata import GgufMetadata, MetadataValue
from .file._tensors import TensorInfo

if TYPE_CHECKING:
    from ._backend import Backend
    from ._compat import get_gguf_metadata, gguf_sd_loader
    from ._load import GgufCheckpoint, load_gguf
    from ._scratch import ScratchPool
    from .dequant._dequantize import dequantize
    from .file._mapping import GgufFile, open_gguf
    from .packed._config import DequantConfig
    from .packed._layers import GgufConv1d, GgufConv2d, GgufConv3d, GgufEmbedding, GgufLinear
    from .packed._linear import packed_embedding, packed_linear
    from .packed._load import LoadReport, configure, load_packed, packed_layers
    from .packed._lora import add_lora, lora_from_state_dict, lora_strengths, remove_lora, set_lora_strength
    from .packed._low_rank import LowRank
    from .packed._tensor import PackedTensor
    from .text._encoder import GgufTextEncoder, load_text_encoder
    from .text._tokenizers import RebuiltTokenizer, rebuild_tokenizer
else:
    _NEED_TORCH = {
        "Backend": "_backend",
        "DequantConfig": "packed._config",
        "GgufCheckpoint": "_load",
        "GgufConv1d": "packed._layers",
        "GgufConv2d": "packed._layers",
        "GgufConv3d": "packed._layers",
        "GgufEmbedding": "packed._layers",
        "GgufFile": "file._mapping",
        "GgufLinear": "packed._layers",
        "GgufTextEncoder": "text._encoder",
        "LoadReport": "packed._load",
        "LowRank": "packed._low_rank",
        "PackedTensor": "packed._tensor",
        "RebuiltTokenizer": "text._tokenizers",
        "ScratchPool": "_scratch",
        "add_lora": "packed._lora",
        "configure": "packed._load",
        "dequantize": "dequant._dequantize",
        "get_gguf_metadata": "_compat",
        "gguf_sd_loader": "_compat",
        "load_gguf": "_load",
        "load_packed": "packed._load",
        "load_text_encoder": "text._encoder",
        "lora_from_state_dict": "packed._lora",
        "lora_strengths": "packed._lora",
        "open_gguf": "file._mapping",
        "packed_embedding": "packed._linear",
        "packed_layers": "packed._load",
        "packed_linear": "packed._linear",
        "rebuild_tokenizer": "text._tokenizers",
        "remove_lora": "packed._lora",
        "set_lora_strength": "packed._lora",
    }

    def __getattr__(name: str) -> object:
        """Import what works on tensors, and with it torch, when it is first asked for; headers do without."""
        if name not in _NEED_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
        return value


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
