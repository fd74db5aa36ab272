"""Lossless packed bf16: weights at 70 % of their bytes, decoded when they are used.

To the planner and the engine a packed weight is a tensor that describes itself by ``__tensor_flatten__``.
May import: _errors, _estimate, _hardware, _plan, planning.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from device_placement.packed._choice import Pack, PackedPlan, plan_packed
from device_placement.packed._errors import DamagedPackError, PackedError

if TYPE_CHECKING:
    from device_placement.packed._backend import Decoder, decode_with
    from device_placement.packed._codec import encode
    from device_placement.packed._file import PackedFile
    from device_placement.packed._file_packing import FileReport, pack_file, unpack_file
    from device_placement.packed._format import Layout, check_buffer
    from device_placement.packed._load import load_packed
    from device_placement.packed._model import PackReport, pack_model, unpack_model
    from device_placement.packed._tensor import PackedWeight
else:
    _NEED_TORCH = {
        "Decoder": "_backend",
        "FileReport": "_file_packing",
        "Layout": "_format",
        "PackReport": "_model",
        "PackedFile": "_file",
        "PackedWeight": "_tensor",
        "check_buffer": "_format",
        "decode_with": "_backend",
        "encode": "_codec",
        "load_packed": "_load",
        "pack_file": "_file_packing",
        "pack_model": "_model",
        "unpack_file": "_file_packing",
        "unpack_model": "_model",
    }

    def __getattr__(name: str) -> object:
        """Import what works on tensors, and with it torch, when it is first asked for; the choice does without."""
        if name not in _NEED_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
        return value


__all__ = [
    "DamagedPackError",
    "Decoder",
    "FileReport",
    "Layout",
    "Pack",
    "PackReport",
    "PackedError",
    "PackedFile",
    "PackedPlan",
    "PackedWeight",
    "check_buffer",
    "decode_with",
    "encode",
    "load_packed",
    "pack_file",
    "pack_model",
    "plan_packed",
    "unpack_file",
    "unpack_model",
]
