"""Lossless packed bf16: weights at 70 % of their bytes, decoded when they are used.

To the planner and the engine a packed weight is a tensor that describes itself by ``__tensor_flatten__``.
May import: _errors.
"""

from device_placement.packed._backend import Decoder, decode_with
from device_placement.packed._codec import encode
from device_placement.packed._errors import DamagedPackError, PackedError
from device_placement.packed._file import PackedFile
from device_placement.packed._file_packing import FileReport, pack_file, unpack_file
from device_placement.packed._format import Layout, check_buffer
from device_placement.packed._load import load_packed
from device_placement.packed._model import PackReport, pack_model, unpack_model
from device_placement.packed._tensor import PackedWeight

__all__ = [
    "DamagedPackError",
    "Decoder",
    "FileReport",
    "Layout",
    "PackReport",
    "PackedError",
    "PackedFile",
    "PackedWeight",
    "check_buffer",
    "decode_with",
    "encode",
    "load_packed",
    "pack_file",
    "pack_model",
    "unpack_file",
    "unpack_model",
]
