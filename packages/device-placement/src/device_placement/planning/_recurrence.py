"""The event recurrence of a streamed pass: when each copy and each forward starts and ends, once things repeat.

With calls numbered over all passes, streamed calls sharing m slots, and copies on one ingress taking turns:

    copy_start(j)    = max(ingress free, compute_end(the m-th streamed call before j))
    compute_start(i) = max(compute_end(i - 1), copy_end(i))

Copies go on across the end of a pass. The steady pass is found by repeating passes until all these times, seen from
the end of their pass, are what they were a pass (or two, or three) ago.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_CYCLE_PASSES = 4
"""A pass may only repeat after several: with an odd number of streamed calls and two slots, say."""

MAX_PASSES = 1000
MAX_CALLS = 200_000
"""Where repetition is not reached (link and compute all but equal, the slots draining ever so slowly), stop here."""

RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Bytes of one call that come from one donor: seconds on an ingress."""

    donor: str
    ingress: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One forward of one unit: what must have arrived, and how long it computes."""

    unit: str
    seconds: float
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A copy (from `donor`) or a forward (`donor` is None) on the clock that starts with the first pass."""

    unit: str
    donor: str | None
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyPass:
    """The pass that repeats: its duration, when it started, and all events that touch it."""

    seconds: float
    start: float
    events: tuple[Event, ...]


@dataclass(slots=True)
class _Clock:
    """Times at which things become free, advanced call by call."""

    slots: int
    overlap: bool
    compute_free: float = 0.0
    ingress_free: dict[str, float] = field(default_factory=dict)
    slot_free: deque[float] = field(default_factory=deque)

    def run(self, call: Call) -> list[Event]:
        """Advance over one call."""
        events = []
        arrived = self.compute_free
        if call.copies:
            # An unprefetched copy starts when its unit's turn has come; a prefetched one as soon as a slot is free.
            ready = self.slot_free.popleft() if len(self.slot_free) == self.slots else 0.0
            for copy in call.copies:
                start = max(self.ingress_free.get(copy.ingress, 0.0), ready if self.overlap else arrived)
                end = self.ingress_free[copy.ingress] = start + copy.seconds
                arrived = max(arrived, end)
                events.append(Event(call.unit, copy.donor, start, end))
        self.compute_free = arrived + call.seconds
        events.append(Event(call.unit, None, arrived, self.compute_free))
        if call.copies:
            self.slot_free.append(self.compute_free)
        return events

    def state(self) -> list[float]:
        """All times that the future depends on, seen from now."""
        times = [*(self.ingress_free[name] for name in sorted(self.ingress_free)), *self.slot_free]
        return [time - self.compute_free for time in times]


def steady_pass(calls: Sequence[Call], *, slots: int, overlap: bool) -> SteadyPass:
    """Repeat the calls of one pass until passes repeat, and return the one that does.

    Args:
        calls: one pass, in the order of the calls.
        slots: m, the copies that may wait on the compute device, the running one's included.
        overlap: False makes each call fetch its own bytes first, as systems without prefetch do.
    """
    clock = _Clock(slots=slots, overlap=overlap)
    ends = [0.0]
    states = [clock.state()]
    limit = max(2 * MAX_CYCLE_PASSES, min(MAX_PASSES, MAX_CALLS // max(1, len(calls))))
    seconds = 0.0
    previous: list[Event] = []
    current: list[Event] = []
    while len(ends) <= limit:
        previous, current = current, [event for call in calls for event in clock.run(call)]
        ends.append(clock.compute_free)
        states.append(clock.state())
        cycle = _cycle(states, tolerance=RELATIVE_TOLERANCE * (ends[-1] - ends[-2]))
        if cycle:
            seconds = (ends[-1] - ends[-1 - cycle]) / cycle
            break
    else:
        half = len(ends) // 2
        seconds = (ends[-1] - ends[half]) / (len(ends) - 1 - half)
    following = [event for call in calls for event in clock.run(call)]
    start, end = ends[-2], ends[-1]
    events = tuple(event for event in (*previous, *current, *following) if event.end > start and event.start < end)
    return SteadyPass(seconds=seconds, start=start, events=events)


def _cycle(states: Sequence[Sequence[float]], *, tolerance: float) -> int:
    """Number of passes after which the last state has come back; 0 while it has not."""
    last = states[-1]
    for passes in range(1, min(MAX_CYCLE_PASSES, len(states) - 1) + 1):
        before = states[-1 - passes]
        if len(before) == len(last) and all(abs(a - b) <= tolerance for a, b in zip(last, before, strict=True)):
            return passes
    return 0
