"""A tensor that looks like its weights and holds their quantised blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import torch

from gguf_loader._backend import Backend
from gguf_loader._errors import GgufPackedError
from gguf_loader._scratch import ScratchPool
from gguf_loader._types import GgmlType, type_by_name
from gguf_loader.dequant._dequantize import dequantize

from ._blocks import BlockTensor
from ._operations import HANDLERS


class PackedTensor(BlockTensor):
    """Quantised weights: the logical shape and dtype outside, the blocks of the file inside.

    `shape`, `ndim`, `numel()` and `dtype` are those of the weights; `nbytes`, `data_ptr()` and the size of
    `untyped_storage()` are those of the packed blocks. The blocks may be a view of a mapped file: nothing here writes
    to them except `copy_` from another packed tensor.

    What keeps the blocks packed, without a copy: `detach`, `view`, `reshape`, `flatten`, `unsqueeze`, and on
    dimension 0 slices of step 1, `select`, `narrow`, `split`, `chunk` and `unbind`, as long as each piece starts and
    ends between two blocks. `.to(dtype)` of a floating dtype changes what the tensor dequantises to, and shares the
    blocks; call `clone()` for blocks of your own. What copies the blocks: `.to(device)`, `clone`, `copy.deepcopy`,
    `pickle`, `torch.save`, `torch.cat` along dimension 0. `dense.copy_(packed)`, and so `load_state_dict` into an
    ordinary module, dequantises straight into `dense`. Everything else raises `GgufPackedError`: no operation turns
    packed weights into dense ones behind the caller's back.

    A parameter is made by `torch.nn.Parameter(packed, requires_grad=False)`; there is no gradient of quantised blocks.

    Attributes:
        packed: the blocks, 1-D contiguous uint8, `ggml_type.size_bytes(numel)` bytes, on the device of the tensor.
        ggml_type: the type of the blocks.

    Args:
        data: the blocks.
        ggml_type: their type; one that has a dequantisation (not Q8_1 and Q8_K, and not an integer type).
        shape: the logical shape, in torch order (rows first).
        dtype: what `dequantize()` returns by default, and what the tensor says that it is. bfloat16 unless
            another is named: today's diffusion models run in it, and it has the range of every ggml type.

    Raises:
        GgufPackedError: the blocks are not 1-D contiguous uint8, or dtype is not a floating dtype of 16 to 64 bits.
        GgufTypeError: the shape does not hold whole blocks.

    >>> packed = PackedTensor(torch.zeros(288, dtype=torch.uint8), type_by_name("Q4_K"), (2, 256))
    >>> packed.shape, packed.dtype, packed.nbytes
    (torch.Size([2, 256]), torch.bfloat16, 288)
    >>> packed[1:].nbytes, packed.to(torch.float16).dequantize().dtype
    (144, torch.float16)
    """

    # All is decided in __torch_dispatch__; torch's default would only make every `.shape` cost microseconds.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def dequantize(
        self,
        dtype: torch.dtype | None = None,
        *,
        out: torch.Tensor | None = None,
        scratch: ScratchPool | None = None,
        backend: Backend = "auto",
    ) -> torch.Tensor:
        """The weights, computed in float32 as ggml computes them and rounded once.

        Args:
            dtype: dtype of the result; that of `out`, else of this tensor, when not given.
            out: contiguous tensor of this shape, on this device, that receives the weights. A fresh result costs
                more than the arithmetic, so whoever dequantises often keeps one.
            scratch: working memory that outlives the call; fresh when not given; sizes as in `gguf_loader.dequantize`.
            backend: `auto`, `eager` or `triton`; see `gguf_loader.dequantize`.

        Returns:
            `out`, or a fresh dense tensor of this shape.

        Raises:
            GgufPackedError: `out` does not fit.
        """
        if dtype is None:
            dtype = self.dtype if out is None else out.dtype
        return dequantize(
            self.packed, self.ggml_type, self.shape, dtype=dtype, out=out, scratch=scratch, backend=backend
        )

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of the packed blocks, not of the weights that they stand for."""
        return self.packed.nbytes

    def data_ptr(self) -> int:
        """Address of the first packed block, which tied tensors share."""
        return self.packed.data_ptr()

    def detach(self) -> PackedTensor:
        """A new tensor over the same blocks."""
        # The dispatcher would do the same. With torch 2.14 the first dispatch on any subclass imports DTensor, which
        # takes seconds; making parameters and running packed layers goes without it.
        return self.with_blocks(self.packed)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuse a gradient: quantised blocks have no gradient.

        Raises:
            GgufPackedError: `requires_grad` is true.
        """
        if requires_grad:
            raise GgufPackedError(
                "quantised weights have no gradient",
                remedy="wrap them by torch.nn.Parameter(packed, requires_grad=False)",
            )
        return self

    def share_memory_(self) -> Self:
        """Move the blocks to shared memory, as `torch.Tensor.share_memory_` does with dense tensors."""
        self.packed.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def is_shared(self) -> bool:
        """Whether the blocks lie in shared memory."""
        return bool(self.packed.is_shared())  # type: ignore[no-untyped-call]

    @classmethod
    def safe_globals(cls) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
        """What `torch.load(weights_only=True)` must be allowed to call: `torch.serialization.safe_globals(...)`."""
        return [rebuild, (rebuild, "gguf_loader._packed._rebuild")]

    def __tensor_flatten__(self) -> tuple[list[str], tuple[GgmlType, torch.Size, torch.dtype]]:
        return ["packed"], (self.ggml_type, self.shape, self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        inner_tensors: Mapping[str, torch.Tensor],
        context: tuple[GgmlType, torch.Size, torch.dtype],
        outer_size: Sequence[int] | None = None,
        outer_stride: Sequence[int] | None = None,
    ) -> PackedTensor:
        ggml_type, shape, dtype = context
        return PackedTensor(
            inner_tensors["packed"], ggml_type, shape if outer_size is None else outer_size, dtype=dtype
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        handler = HANDLERS.get(func)
        if handler is not None:
            return handler(*args, **(kwargs or {}))
        # In inference mode torch hands over composite operations (`to`, `reshape`) whole, elsewhere their parts.
        result = func.decompose(*args, **(kwargs or {})) if torch.is_inference_mode_enabled() else NotImplemented
        if result is NotImplemented:
            raise GgufPackedError(
                f"{func} does not work on packed weights", remedy="call .dequantize() first, or use a GgufLinear"
            )
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedTensor:
        return _as(self.with_blocks(self.packed.clone()), isinstance(self, torch.nn.Parameter))

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., PackedTensor], tuple[Any, ...]]:
        # A pickled view takes its whole storage along, which here may be the whole file.
        whole = self.packed.untyped_storage().nbytes() == self.packed.nbytes
        data = self.packed if whole else self.packed.clone()
        is_parameter = isinstance(self, torch.nn.Parameter)
        return rebuild, (data, self.ggml_type.name, tuple(self.shape), self.dtype, is_parameter)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"PackedTensor({self.ggml_type.name}, shape={tuple(self.shape)}, dtype={self.dtype}, "
            f"device='{self.device}', nbytes={self.nbytes})"
        )


def rebuild(data: torch.Tensor, type_name: str, shape: Sequence[int], dtype: torch.dtype, is_parameter: bool) -> Any:
    """A packed tensor from what pickling kept of it."""
    return _as(PackedTensor(data, type_by_name(type_name), shape, dtype=dtype), is_parameter)


def _as(packed: PackedTensor, is_parameter: bool) -> PackedTensor:
    if not is_parameter:
        return packed
    parameter: Any = torch.nn.Parameter(packed, requires_grad=False)
    return cast(PackedTensor, parameter)
