"""Weights as a worker sees them: a mapping of tensors whose memory is the shared one."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch

from ray_parallel.workers.weights._errors import SharedWriteError, WeightsError, listed
from ray_parallel.workers.weights._layout import TensorSlot, WeightsLayout, torch_dtype
from ray_parallel.workers.weights._sharing import Mode, Share, measure
from ray_parallel.workers.weights._store import Bytes


class OpenWeights(Mapping[str, torch.Tensor]):
    """The tensors of a model, none of them copied.

    Weights of a file are mapped copy-on-write: writing to one is safe and makes that page the worker's own. Weights of
    the object store are one memory for all workers and must not be written in place: `require_unwritten` finds out.
    A cast (``.to(torch.bfloat16)``) or a move makes a private copy, so cast and move no more than is needed.

    Attributes:
        mode: how they are shared.
        layout: names, types, shapes and notes.
        copied_bytes: bytes that had to be copied because a file does not align them for their type.
        protected_bytes: bytes whose pages are read only.

    Args:
        mode: how the parts are shared.
        layout: what lies where in the parts.
        parts: the mapped files, or the arrays of the store.
        protected_bytes: bytes of the store whose pages are read only.
    """

    def __init__(
        self, mode: Mode, layout: WeightsLayout, parts: Sequence[mmap.mmap | Bytes], *, protected_bytes: int = 0
    ) -> None:
        self.mode = mode
        self.layout = layout
        self.copied_bytes = 0
        self.protected_bytes = protected_bytes
        self._tensors = {slot.name: self._view(parts[slot.part], slot) for slot in layout.slots}
        self._versions = {name: tensor._version for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def written(self) -> tuple[str, ...]:
        """Tensors that torch wrote in place since they were opened.

        Torch counts writes by every operator, also through a parameter or a view of the tensor; what escapes it
        (``.data``, NumPy, custom kernels) meets read-only pages where the weights were opened `protected`.
        """
        return tuple(name for name, tensor in self._tensors.items() if tensor._version != self._versions[name])

    def require_unwritten(self) -> None:
        """Refuse to go on when weights that other processes read were written.

        Raises:
            SharedWriteError: naming them; never for weights of a file, whose pages are copied when written.
        """
        if self.mode == "store" and (names := self.written()):
            raise SharedWriteError(names)

    def load_into(self, module: torch.nn.Module) -> None:
        """Make these tensors the parameters and buffers of a module, without a copy and without a cast.

        Args:
            module: built on the meta device, or anything whose own weights may go.

        Raises:
            WeightsError: names or shapes differ, or the module copies the tensors.
        """
        expected = module.state_dict()
        for what, names in (
            ("misses", [name for name in expected if name not in self]),
            ("has unknown", [name for name in self if name not in expected]),
            ("has shapes that differ for", [n for n in self if n in expected and expected[n].shape != self[n].shape]),
        ):
            if names:
                raise WeightsError(
                    "the checkpoint", f"{what} {listed(names)}", f"take the one of {type(module).__name__}"
                )
        module.load_state_dict(dict(self), assign=True)
        lost = [name for name, tensor in module.state_dict().items() if tensor.data_ptr() != self[name].data_ptr()]
        if lost:
            raise WeightsError(
                type(module).__name__, f"copied {listed(lost)} while loading", "let its load_state_dict assign tensors"
            )

    def touch(self) -> int:
        """Read one byte of every page, so that all of it is resident; returns the bytes of the tensors."""
        for tensor in self._tensors.values():
            if tensor.nbytes:
                tensor.reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()
        return self.layout.size_bytes

    def share(self) -> Share | None:
        """What the weights take in this process, or None where the operating system does not tell."""
        return measure([(tensor.data_ptr(), tensor.nbytes) for tensor in self._tensors.values()])

    def _view(self, part: mmap.mmap | Bytes, slot: TensorSlot) -> torch.Tensor:
        dtype = torch_dtype(slot.name, slot.dtype)
        if not slot.size_bytes:
            return torch.empty(slot.shape, dtype=dtype)
        with warnings.catch_warnings():
            # Arrays of the store say that they are not writable; `require_unwritten` and read-only pages see to that.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            data = torch.frombuffer(part, dtype=torch.uint8, count=slot.size_bytes, offset=slot.offset_bytes)
        if data.data_ptr() % dtype.itemsize:
            self.copied_bytes += slot.size_bytes
            data = data.clone()
        return data.view(dtype).view(slot.shape)
