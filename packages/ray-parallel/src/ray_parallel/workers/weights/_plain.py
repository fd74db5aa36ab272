"""Plain data: what may travel between processes besides weights. Nothing else is pickled, no code and no modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from ray_parallel.workers._errors import InvalidRequestError

Plain: TypeAlias = Any
"""None, bool, int, float, str, bytes, a torch.Tensor, or lists, tuples and str-keyed mappings of these."""

_SCALARS = (type(None), bool, int, float, str, bytes)
_TENSOR = "ray_parallel.tensor"
_TUPLE = "ray_parallel.tuple"


def require_plain(value: Plain, where: str) -> None:
    """Refuse what is not plain data.

    Raises:
        InvalidRequestError: naming the first place that holds something else.

    >>> require_plain({"steps": [1, 2.5, None]}, "arguments")
    >>> require_plain({"callback": print}, "arguments")
    Traceback (most recent call last):
    ray_parallel.workers._errors.InvalidRequestError: arguments['callback'] is a builtin_function_or_method, ...
    """
    encode(value, where, tensors=False)


def encode(value: Plain, where: str, *, tensors: bool = True) -> Plain:
    """Turn tensors into dtype, shape and bytes, so that every element type survives, fp8 included.

    Args:
        value: plain data.
        where: its name in the message.
        tensors: False to check only; tensors are then unchanged.

    Raises:
        InvalidRequestError: something in it is not plain data.
    """
    if type(value) in _SCALARS:
        return value
    if type(value) is torch.Tensor or type(value) is torch.nn.Parameter:
        if value.layout != torch.strided or value.is_meta:
            raise InvalidRequestError(
                f"{where} is a tensor without plain bytes ({value.layout}, {value.device}); "
                "only dense tensors with memory travel"
            )
        return _encode_tensor(value) if tensors else value
    if type(value) in (list, tuple):
        items = [encode(item, f"{where}[{index}]", tensors=tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        if reserved := [key for key in (_TENSOR, _TUPLE) if key in value]:
            raise InvalidRequestError(
                f"{where} has the key {reserved[0]!r}, which stands for something else on the way; use another name"
            )
        return {key: encode(item, f"{where}[{key!r}]", tensors=tensors) for key, item in value.items()}
    raise InvalidRequestError(
        f"{where} is a {type(value).__name__}, but only plain data and tensors travel to workers; "
        'name code as "module:function" and build objects there'
    )


def decode(value: Plain) -> Plain:
    """Undo `encode`; every tensor gets new memory.

    >>> decode(encode({"a": (1, torch.ones(2, dtype=torch.float8_e5m2))}, "x"))
    {'a': (1, tensor([1., 1.], dtype=torch.float8_e5m2))}
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if _TUPLE in value:
            return tuple(decode(value[_TUPLE]))
        return _decode_tensor(value[_TENSOR]) if _TENSOR in value else {key: decode(value[key]) for key in value}
    return value


def tensor_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor in main memory, 1-D uint8; a view wherever that is possible."""
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)


def _encode_tensor(tensor: torch.Tensor) -> Plain:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {_TENSOR: [dtype, list(tensor.shape), tensor_bytes(tensor).numpy()]}


def _decode_tensor(parts: list[Any]) -> torch.Tensor:
    dtype, shape, array = parts
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    if array.size:
        tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(np.array(array, copy=True)))
    return tensor
