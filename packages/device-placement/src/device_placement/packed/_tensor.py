"""A tensor that is its bf16 weights to everybody who reads it, and holds their w3 code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from device_placement.packed._backend import Decoder, decode_with
from device_placement.packed._codec import encode
from device_placement.packed._errors import PackedError
from device_placement.packed._format import Layout, check_buffer
from device_placement.packed._read_only import ReadOnly, written_to

aten = torch.ops.aten


class PackedWeight(torch.Tensor):
    """Packed bf16 weights: shape and dtype of the weights outside, their code inside.

    Copies stay packed: `detach`, `clone`, `.to(device)`, pinning, `copy.deepcopy`, `pickle`. Every other operation
    decodes first and computes with dense bf16, so that layers, LoRA at use and other patches need not know of packed
    weights. Nothing can be written to them, nor to a view of them (`weight[0]`, `weight.t()`), which is a `ReadOnly`.
    There is no address of the weights to ask for, only that of their code, `packed`.

    A parameter is made by `torch.nn.Parameter(weight, requires_grad=False)`.

    Attributes:
        packed: the planes, 1-D contiguous uint8 of `layout_w3.size_bytes`, on the device of the tensor.
        layout_w3: shape, window and number of escapes.

    Args:
        packed: a buffer that `encode` made. Its content is not read here, since it may not have arrived yet: bytes
            from outside go through `check_buffer`.
        layout: what belongs to it.

    Raises:
        DamagedPackError: the buffer does not have the size that the layout asks for.

    >>> weight = PackedWeight.of(torch.linspace(-1, 1, 4096).bfloat16().view(64, 64))
    >>> weight.shape, weight.dtype, weight.nbytes
    (torch.Size([64, 64]), torch.bfloat16, 5696)
    >>> bool(weight[63, 63] == 1)
    True
    """

    packed: Tensor
    layout_w3: Layout

    # All is decided in __torch_dispatch__; torch's default would only make every `.shape` cost microseconds.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, packed: Tensor, layout: Layout) -> Self:
        """Check that the size of the buffer is right, and wrap it."""
        layout.require_size(packed)
        return torch.Tensor._make_wrapper_subclass(cls, layout.shape, dtype=torch.bfloat16, device=packed.device)

    def __init__(self, packed: Tensor, layout: Layout) -> None:
        self.packed = packed
        self.layout_w3 = layout

    @classmethod
    def of(cls, dense: Tensor) -> Self | None:
        """Pack a bf16 tensor on its device; None where that does not make it smaller.

        Raises:
            PackedError: the tensor is not bf16.
        """
        encoded = encode(dense)
        return None if encoded is None else cls(*encoded)

    def dense(self, out: Tensor | None = None, *, decoder: Decoder = "auto") -> Tensor:
        """The weights, bit for bit those that were packed.

        Args:
            out: contiguous bf16 of this shape, on this device, that receives them; fresh when not given.
            decoder: `auto`, `eager` or `triton`.

        Raises:
            PackedError: `out` does not fit, or the decoder cannot work here.
        """
        if torch.compiler.is_compiling() or type(self.packed) is not Tensor:
            # Whoever traces sees one operation. The module that defines it is imported when it is first needed.
            from device_placement.packed._op import decode_op

            traced: Tensor = decode_op(self.packed, self.shape, self.layout_w3.base, self.layout_w3.escapes)
            return traced if out is None else out.copy_(traced)
        return decode_with(self.packed, self.layout_w3, out=out, decoder=decoder)

    def over(self, packed: Tensor) -> PackedWeight:
        """The same weights in another buffer."""
        return PackedWeight(packed, self.layout_w3)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of the buffer."""
        return self.packed.nbytes

    def data_ptr(self) -> int:
        """Refuse: whoever reads memory by its address would take the code for weights.

        Raises:
            PackedError: always.
        """
        raise PackedError("packed weights have no address; pass .dense(), or .packed for their code")

    @property
    def data(self) -> PackedWeight:
        """The weights without autograd; it cannot be set."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise _not_writable("`.data = ...`")

    def detach(self) -> PackedWeight:
        """A new tensor over the same buffer."""
        # The dispatcher would do the same. With torch 2.14 the first dispatch on any subclass imports DTensor, which
        # takes seconds.
        return self.over(self.packed)

    def share_memory_(self) -> Self:
        """Move the buffer to shared memory, as `torch.Tensor.share_memory_` does with dense tensors."""
        self.packed.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def is_shared(self) -> bool:
        """Whether the buffer lies in shared memory."""
        return bool(self.packed.is_shared())  # type: ignore[no-untyped-call]

    @classmethod
    def safe_globals(cls) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
        """What `torch.load(weights_only=True)` must be allowed to call: `torch.serialization.safe_globals(...)`."""
        return [_rebuild]

    def __tensor_flatten__(self) -> tuple[list[str], Layout]:
        return ["packed"], self.layout_w3

    @staticmethod
    def __tensor_unflatten__(
        inner_tensors: Mapping[str, Tensor],
        context: Layout,
        outer_size: Sequence[int] | None = None,
        outer_stride: Sequence[int] | None = None,
    ) -> PackedWeight:
        return PackedWeight(inner_tensors["packed"], context)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _STAY_PACKED.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        elif torch.is_inference_mode_enabled():
            # There torch hands over composite operations (`to`, `linear`) whole, elsewhere their parts.
            result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if any(isinstance(tensor, PackedWeight) for tensor in written_to(func, args, kwargs)):
            raise _not_writable(str(func))
        result = func(*_decoded(args), **{name: _decoded(value) for name, value in kwargs.items()})
        return ReadOnly.of_views(func, result)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return _as(self.over(self.packed.clone()), self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        # A pickled view takes its whole storage along: all of a donor's share of a unit.
        whole = self.packed.untyped_storage().nbytes() == self.packed.nbytes
        packed = self.packed if whole else self.packed.clone()
        layout = self.layout_w3
        return _rebuild, (packed, layout.shape, layout.base, layout.escapes, isinstance(self, nn.Parameter))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight(shape={tuple(self.shape)}, device='{self.device}', nbytes={self.nbytes})"


def _rebuild(packed: Tensor, shape: Sequence[int], base: int, escapes: int, is_parameter: bool) -> Tensor:
    layout = Layout(shape=tuple(shape), base=base, escapes=escapes)
    check_buffer(packed, layout)
    weight = PackedWeight(packed, layout)
    return nn.Parameter(weight, requires_grad=False) if is_parameter else weight


def _as(weight: PackedWeight, like: PackedWeight) -> PackedWeight:
    if not isinstance(like, nn.Parameter):
        return weight
    parameter: Any = nn.Parameter(weight, requires_grad=like.requires_grad)
    found: PackedWeight = parameter
    return found


def _not_writable(what: str) -> PackedError:
    return PackedError(
        f"{what} would write to packed weights, which cannot be changed in place; "
        "replace the parameter by a dense one (.dense()), or call unpack_model() first"
    )


def _decoded(value: Any) -> Any:
    """`value`, packed weights in it decoded."""
    if isinstance(value, PackedWeight):
        return value.dense()
    if isinstance(value, (list, tuple)):
        return [_decoded(item) for item in value]
    return value


def _detach(self: PackedWeight) -> PackedWeight:
    return self.over(self.packed)


def _clone(self: PackedWeight, *, memory_format: torch.memory_format | None = None) -> Any:
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        return NotImplemented
    return self.over(self.packed.clone())


def _to_copy(
    self: PackedWeight,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> Any:
    same = dtype in (None, torch.bfloat16) and layout in (None, torch.strided) and not pin_memory
    if not same or memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        return NotImplemented
    target = self.packed.device if device is None else device
    return self.over(self.packed.to(target, non_blocking=non_blocking, copy=True))


def _copy_(self: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    if isinstance(self, PackedWeight) and isinstance(source, PackedWeight) and self.layout_w3 == source.layout_w3:
        self.packed.copy_(source.packed, non_blocking=non_blocking)
        return self
    return NotImplemented


def _record_stream(self: PackedWeight, stream: torch.Stream) -> None:
    self.packed.record_stream(stream)


_STAY_PACKED: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        aten.detach.default: _detach,
        aten.alias.default: _detach,
        aten.clone.default: _clone,
        aten._to_copy.default: _to_copy,
        aten.copy_.default: _copy_,
        aten.is_pinned.default: lambda self, device=None: self.packed.is_pinned(),
        aten._pin_memory.default: lambda self, device=None: self.over(self.packed.pin_memory()),
        aten.record_stream.default: _record_stream,
    }
)
"""Operations on the code itself; NotImplemented lets the weights be decoded."""
