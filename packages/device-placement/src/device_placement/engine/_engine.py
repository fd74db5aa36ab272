"""Runs a placed model: exchanges each unit's tensors around its forward, and fetches ahead what will be called next.

The way of a unit: `enter` (its forward begins) makes the computing stream wait for the unit's bytes and lets its module
refer to them; `leave` (its forward ended, well or not) lets the module refer to its homes again, declares the slot
free, and starts the copies of the units expected next. Only the entries of the module's dictionaries are exchanged: the
parameters themselves stay at home, so that edits and state dicts see the one true copy.

Threads take turns: one holds the engine from `enter` to `leave`, since a module's entries are the same for everybody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from time import perf_counter_ns
from typing import Any

import torch

from device_placement._errors import HandleStateError, StreamedWriteError
from device_placement.copying._backend import Streamer
from device_placement.engine._change_watch import Homes
from device_placement.engine._claims import claim
from device_placement.engine._outputs import out_of
from device_placement.engine._prefetch import fetch_ahead, fetch_now, report_uncalled
from device_placement.engine._prefetch_order import CallOrder
from device_placement.engine._replacement import Allocate
from device_placement.engine._slots import Ring
from device_placement.engine._streamed_unit import Slot, StreamedUnit
from device_placement.tensors._stored import Kept


class Engine:
    """The state of one placed model between and during its forwards.

    Args:
        units: units with streamed tensors, in the order that is expected of the first pass.
        residents: tensors that live on the compute device.
        streamer: copies for this model.
        make_ring: allocates so many slots; raises BudgetTooSmallError.
        slots: how many.
        allocate: gives memory on a donor to what replaces a streamed tensor.
    """

    def __init__(
        self,
        *,
        units: Sequence[StreamedUnit],
        residents: Sequence[Kept],
        streamer: Streamer,
        make_ring: Callable[[int], Ring],
        slots: int,
        allocate: Allocate,
    ) -> None:
        self.units = tuple(units)
        self.residents = tuple(residents)
        self.passes = 0
        self.surprises = 0
        self.refetches = 0
        self.waits = 0
        self.wait_seconds = 0.0
        self.hook_nanoseconds = 0
        self._lock = threading.RLock()
        self._slots = slots
        self._streamer = streamer
        self._make_ring = make_ring
        self._allocate = allocate
        self._ring: Ring | None = None
        self._closed = False
        self._process = os.getpid()
        self._order = CallOrder(self.units)
        self._active: list[StreamedUnit] = []
        self._homes = Homes(self.units, self.residents, self.synchronize, allocate, self._claim)
        self.start()
        for unit in self.units:
            self._claim(unit.tensors)
        self._claim(self.residents)

    @property
    def lock(self) -> threading.RLock:
        """Held by the thread whose turn it is; raises HandleStateError in a forked process that cannot go on."""
        if os.getpid() != self._process:
            self._move_to_this_process()
        return self._lock

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def slots_bytes(self) -> int:
        """Bytes of the slots now."""
        return 0 if self._ring is None else self._ring.size_bytes

    @property
    def paused(self) -> bool:
        """Whether the slots are given back."""
        return self._ring is None

    # ------------------------------------------------------------------------------------------------ around a forward

    def enter(self, unit: StreamedUnit) -> None:
        """The forward of `unit` begins on the calling thread.

        Raises:
            HandleInvalidatedError: its tensors were moved or deleted since they were placed.
            HandleStateError: the model is paused or was removed, or more units are nested than there are slots.
        """
        began = perf_counter_ns()
        self.lock.acquire()
        try:
            if unit.depth:
                self._enter_again(unit)
                return
            self._running_ring()
            if not unit.is_untouched():
                self._reconcile(unit)
            expected = self._order.record(unit)
            slot = unit.slot
            if slot is None or not expected:
                slot = self._catch_up(unit, expected)
            waited = slot.gate.arrive()
            unit.exchange(slot)
            unit.depth = 1
            unit.owner = get_ident()
            unit.calls += 1
            self._active.append(unit)
        except BaseException:
            if not unit.depth:
                self._doubt(unit)
            self.lock.release()
            raise
        if waited:
            self.waits += 1
            self.wait_seconds += waited
            began += int(waited * 1e9)
        self.hook_nanoseconds += perf_counter_ns() - began

    def leave(self, unit: StreamedUnit, result: Any) -> Any:
        """The forward of `unit` ended on the calling thread, or never began because `enter` raised.

        Args:
            unit: the unit.
            result: what the forward returned; None when it raised.

        Returns:
            what to return instead of `result`, or None: a result that lies in the slot has to leave it.

        Raises:
            StreamedWriteError: the forward wrote to the slot.
        """
        if unit.owner != get_ident():
            return None
        began = perf_counter_ns()
        try:
            slot = unit.slot
            assert slot is not None
            if unit.depth > 1:
                unit.depth -= 1
                slot.gate.release()
                return None
            if slot.buffer is None:
                self._restore(unit)
                return None
            saved = out_of(slot, result)
            written = unit.wrote_to(slot.buffer)
            self._restore(unit)
            if written:
                self._running_ring().refill(unit)
                raise StreamedWriteError(unit.path, [kept.name for kept in unit.tensors])
            fetch_ahead(self._running_ring(), self._order)
            return saved
        finally:
            self.hook_nanoseconds += perf_counter_ns() - began
            self.lock.release()

    def is_inside(self, unit: StreamedUnit) -> bool:
        """Whether the calling thread is in the forward of `unit`."""
        return unit.owner == get_ident()

    def enter_model(self) -> None:
        """A forward of the whole model begins on the calling thread.

        Raises:
            HandleInvalidatedError: resident tensors were moved or deleted since they were placed.
        """
        with self.lock:
            self._abandon_left()
            if self.passes == 1:
                report_uncalled(self.units)
            self.passes += 1
            if self._homes.reloaded:
                self.refresh()
            else:
                self._homes.check_residents()

    def _enter_again(self, unit: StreamedUnit) -> None:
        """A unit is called inside its own forward: nothing to exchange, but the stream may be another."""
        assert unit.slot is not None
        unit.slot.gate.arrive()
        unit.depth += 1

    def _restore(self, unit: StreamedUnit) -> None:
        unit.restore()
        unit.depth = 0
        unit.owner = 0
        if self._active[-1] is unit:
            self._active.pop()
        else:
            self._active.remove(unit)

    def _abandon_left(self) -> None:
        """End forwards of the calling thread that were left without `leave`, as a KeyboardInterrupt leaves them."""
        for unit in reversed(self._active[:]):
            if not unit.is_running():
                calls = unit.depth
                self._restore(unit)
                for _ in range(calls):
                    self.lock.release()

    def _doubt(self, unit: StreamedUnit) -> None:
        """What is in the slot of a unit may not have arrived: its next call fetches it again."""
        if self._ring is not None:
            self._ring.empty(unit)

    def _reconcile(self, unit: StreamedUnit) -> None:
        """The host edited, replaced or moved tensors of the unit."""
        if self._homes.reloaded:
            self.refresh()
        else:
            self._homes.settle(unit)
            self._running_ring().refill(unit)
        self.refetches += 1

    # ------------------------------------------------------------------------------------------------ what comes next

    def _running_ring(self) -> Ring:
        if self._ring is not None:
            return self._ring
        if self._closed:
            raise HandleStateError("the placement was removed while the model was called; place() it again")
        raise HandleStateError("the placed model is paused and has no slots; call resume() on its handle")

    def _catch_up(self, unit: StreamedUnit, expected: bool) -> Slot:
        """Get a unit that was not expected, or not fetched, and make up for it."""
        if not expected:
            self.surprises += 1
        ring = self._running_ring()
        slot = unit.slot
        if slot is None:
            slot = fetch_now(ring, self._order, unit, self._abandon_left)
        fetch_ahead(ring, self._order, current=unit)
        return slot

    def _claim(self, tensors: Sequence[Kept]) -> None:
        claim((part for kept in tensors for part, _ in kept.pointers), self)

    def _move_to_this_process(self) -> None:
        """The model came here by fork, which takes no threads along: nothing that was under way arrives here.

        Raises:
            HandleStateError: it computes on a device, which a forked process cannot use, or the fork was made inside
                one of its forwards.
        """
        if self._active:
            raise HandleStateError(
                f"the process was forked inside the forward of {self._active[-1].path!r}; fork between forwards, or "
                "start the process by spawn and place the model there"
            )
        self._streamer.restart()
        self._lock = threading.RLock()
        self._process = os.getpid()
        for unit in self.units:
            self._doubt(unit)

    # ------------------------------------------------------------------------------------------------ between forwards

    def note_reload(self) -> None:
        """`load_state_dict` ran on the model."""
        self._homes.reloaded = True

    def refresh(self) -> None:
        """Bring every tensor home that is somewhere else, and fetch again what is in the slots.

        Raises:
            HandleInvalidatedError: a tensor is gone or has another shape or dtype.
            HandleStateError: a forward of the calling thread runs.
        """
        with self.lock:
            self.require_idle("refresh()")
            self._homes.restore()
            if self._ring is not None:
                for unit in self.units:
                    self._ring.refill(unit)

    def start(self) -> None:
        """Allocate the slots and fetch what is expected first; nothing to do if that was done.

        Raises:
            BudgetTooSmallError: there is no room for them.
            HandleInvalidatedError: streamed tensors were moved or deleted.
        """
        with self.lock:
            if self._ring is not None:
                return
            for unit in self.units:
                if not unit.is_untouched():
                    self._homes.settle(unit)
            with torch.inference_mode(False), torch.no_grad():
                self._ring = self._make_ring(self._slots)
            try:
                fetch_ahead(self._ring, self._order)
            except BaseException:
                self._give_slots_back()
                raise

    def stop(self, what: str) -> None:
        """Wait for all copies and forwards, then give the slots back.

        Raises:
            HandleStateError: a forward of the calling thread runs.
        """
        with self.lock:
            self.require_idle(what)
            if self._ring is not None:
                try:
                    self.synchronize()
                finally:
                    self._give_slots_back()

    def synchronize(self) -> None:
        """Wait for all copies and forwards. A copy that failed is raised; nobody relies on any slot then."""
        try:
            self._streamer.synchronize()
        except BaseException:
            for unit in self.units:
                self._doubt(unit)
            raise

    def _give_slots_back(self) -> None:
        for unit in self.units:
            unit.forget_slots()
        self._ring = None

    def resize(self, slots: int) -> None:
        """Run with another number of slots; with the old one if there is no room.

        Raises:
            BudgetTooSmallError: there is no room for so many.
            HandleStateError: a forward of the calling thread runs.
        """
        with self.lock:
            running = self._ring is not None
            self.stop("resize()")
            before, self._slots = self._slots, slots
            if not running:
                return
            try:
                self.start()
            except BaseException:
                self._slots = before
                self.start()
                raise

    def close(self) -> None:
        """Stop, give back threads and streams, and let go of the model; also where a copy had failed, which is raised.

        Raises:
            HandleStateError: a forward of the calling thread runs; nothing was done.
        """
        with self.lock:
            self.require_idle("remove()")
            try:
                self.stop("remove()")
            finally:
                self._closed = True
                self._streamer.close()
                self.units = ()
                self.residents = ()
                self._homes = Homes((), (), self.synchronize, self._allocate, self._claim)
                self._order = CallOrder(())

    def require_idle(self, what: str) -> None:
        """Refuse what must not be done inside a forward of the calling thread.

        Raises:
            HandleStateError: one runs.
        """
        with self.lock:
            self._abandon_left()
            if self._active:
                raise HandleStateError(
                    f"{what} was called inside the forward of {self._active[-1].path!r}; wait for its end"
                )
