"""The handle of a placed model."""

from __future__ import annotations

import types
from typing import Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from device_placement._errors import HandleStateError
from device_placement._numbers import is_count, quoted
from device_placement._plan import PlacementPlan
from device_placement._stats import PlacementStats
from device_placement.copying._backend import Backend
from device_placement.engine._engine import Engine


class PlacedModel:
    """A model whose bytes live where its plan says; made by `place`. As a context manager it removes itself at the end.

    Attributes:
        model: the model, to be called as ever.
        plan: the plan that came true. It differs from the one asked for where a donor had no room; its warnings say so.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        plan: PlacementPlan,
        engine: Engine,
        handles: list[RemovableHandle],
        backend: Backend,
    ) -> None:
        self.model = model
        self.plan = plan
        self._engine = engine
        self._handles = handles
        self._backend = backend
        self._removed = False
        self._last_stats: PlacementStats | None = None

    @property
    def removed(self) -> bool:
        """Whether `remove` was called."""
        return self._removed

    @property
    def paused(self) -> bool:
        """Whether the model is paused."""
        return self._engine.paused and not self._removed

    def stats(self) -> PlacementStats:
        """What happened since the model was placed; after `remove`, what had happened by then."""
        if self._last_stats is not None:
            return self._last_stats
        engine = self._engine
        with engine.lock:
            copied: dict[str, int] = {}
            held = dict.fromkeys((self.plan.compute, *self.plan.donors), 0)
            copies = pinned = 0
            for unit in engine.units:
                for share in unit.shares:
                    copies += unit.fetches
                    copied[share.donor] = copied.get(share.donor, 0) + unit.fetches * share.buffer.numel()
                    held[share.donor] += share.buffer.numel()
                    pinned += share.buffer.numel() if _is_pinned(share.buffer) else 0
            held[self.plan.compute] += sum(kept.size_bytes for kept in engine.residents if kept.is_home())
            held[self.plan.compute] += engine.slots_bytes
            return PlacementStats(
                passes=engine.passes,
                calls=sum(unit.calls for unit in engine.units),
                copies=copies,
                copied_bytes=copied,
                surprises=engine.surprises,
                refetches=engine.refetches,
                waits=engine.waits,
                wait_seconds=engine.wait_seconds,
                hook_seconds=engine.hook_nanoseconds / 1e9,
                held_bytes=held,
                pinned_bytes=pinned,
                uncalled=tuple(unit.path for unit in engine.units if not unit.calls),
            )

    def refresh(self) -> None:
        """Make the placement true again after the host changed the model in a way that shows nowhere.

        Needed after edits through ``parameter.data`` (the engine notices all others by itself), and after
        `HandleInvalidatedError`: tensors that were moved or replaced come home, and what is in the slots is fetched
        again. Waits for the device.

        Raises:
            HandleInvalidatedError: a tensor was deleted or has another shape or dtype; remove() and plan again.
            HandleStateError: called inside a forward, or after remove().
        """
        self._require()
        self._engine.refresh()

    def pause(self) -> _Pause:
        """Give the slots back until `resume`: the compute device holds what is resident and nothing else.

        A forward of a paused model raises HandleStateError. Tensors may be edited in any way meanwhile. Waits for the
        device. May be used as a toggle or as a context manager that resumes::

            with handle.pause():
                merge_lora(model)

        Raises:
            HandleStateError: called inside a forward, or after remove().
        """
        self._require()
        self._engine.stop("pause()")
        return _Pause(self)

    def resume(self) -> None:
        """Take slots again and go on; nothing happens if the model is not paused.

        Raises:
            BudgetTooSmallError: the compute device has no room for the slots; the model stays paused.
            HandleInvalidatedError: tensors were moved meanwhile; call refresh(), then resume().
            HandleStateError: called after remove().
        """
        self._require()
        self._engine.start()

    def resize(self, *, slots: int) -> None:
        """Change the number of slots. Waits for the device.

        Raises:
            BudgetTooSmallError: there is no room for so many; the old number stays.
            HandleStateError: fewer than one, called inside a forward, or after remove().
        """
        self._require()
        if not is_count(slots, least=1):
            raise HandleStateError(f"{quoted(slots)} slots cannot receive anything; use 1 or more, or pause()")
        self._engine.resize(slots)

    def remove(self, to: str | torch.device | None = None) -> None:
        """Take the hooks off and give back slots, streams and threads. Waits for the device; may be called twice.

        A copy that failed and that nobody waited for is raised here, when all is given back.

        Args:
            to: device to move the whole model to, None to leave every tensor in its home.

        Raises:
            HandleStateError: called inside a forward.
        """
        if not self._removed:
            self._engine.require_idle("remove()")
            last_stats = self.stats()
            try:
                self._engine.close()
            finally:
                self._last_stats = last_stats
                for handle in self._handles:
                    handle.remove()
                self._handles.clear()
                self._removed = True
        if to is not None:
            self.model.to(to)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "removed" if self._removed else "paused" if self.paused else "running"
        streamed = len(self._engine.units)
        return (
            f"<PlacedModel {type(self.model).__name__} on {self.plan.compute}, "
            f"{streamed} of {len(self.plan.units)} units streamed, {state}>"
        )

    def _require(self) -> None:
        if self._removed:
            raise HandleStateError("the placement was removed; place() the model again")


class _Pause:
    """Resumes when the block ends."""

    def __init__(self, handle: PlacedModel) -> None:
        self._handle = handle

    def __enter__(self) -> PlacedModel:
        return self._handle

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._handle.resume()


def _is_pinned(buffer: torch.Tensor) -> bool:
    return buffer.device.type == "cpu" and torch.accelerator.is_available() and buffer.is_pinned()
