"""The opt-in check of what the host itself does with pinned memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simdev._face import _module, violations


class HostRaceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ unannotated
    """Inside this `with`, host operators on pinned memory must be ordered after the device's use of it.

    The detector sees device operators by itself; what the host reads and writes never reaches it, and so a staging
    buffer that is refilled too early goes unseen without this mode. It costs a Python call an operator.

    Raises:
        RuntimeError: "simdev race: ..." at a host operator that touches bytes a queued copy still reads or writes,
            when races are raised; when they are recorded, it is found in `violations`.
    """

    def __init__(self) -> None:
        """Make a mode for one `with`."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Asked to skip, torch wraps the method below and imports its compiler on first use, which takes seconds.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Check the operator, then run it."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not func.is_view and all(tensor.device.type == "cpu" for tensor in tensors):
            for tensor, write in _accesses(func, args, kwargs):
                if _must_raise(func, tensor, write):
                    raise RuntimeError(f"simdev race: {violations()[-1]}")
        return func(*args, **kwargs)


def _accesses(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[torch.Tensor, bool]]:
    """Yield each tensor argument and whether the operator writes it."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    for argument in func._schema.arguments:
        write = argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tree_leaves(given.get(argument.name)):
            if isinstance(leaf, torch.Tensor):
                yield leaf, write


def _must_raise(func: Any, tensor: torch.Tensor, write: bool) -> bool:
    if tensor.numel() == 0:
        return False
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size_bytes = (last + 1) * tensor.element_size()
    return _module().library.host_access(tensor.data_ptr(), size_bytes, write=write, what=str(func))
