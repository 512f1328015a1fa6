"""Replicas in virtual time: what `driving` and `dealing` do at any size, in one process.

A simulated replica takes a unit's tokens divided by its speed and reports as a real one does. It
can be told to die, to hang, to report trouble, to answer twice or to leave answers out. What it
answers depends on the request alone. Nothing is computed and nothing is sent.
"""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lm_eval_exl2.records import Score, TokenCounts
from lm_eval_exl2.replicas.driving import Event
from lm_eval_exl2.replicas.replica import REPORT_ANSWERS, REPORT_S, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval_exl2.replicas.cut import WorkUnit

    # Replica, unit, random numbers -> what goes wrong and after which share of the unit.
    Fate = Callable[[int, WorkUnit, random.Random], "Mishap | None"]

KINDS = ("dies", "hangs", "is silent", "reports a fault", "answers twice", "leaves answers out")


@dataclass(frozen=True, slots=True)
class Mishap:
    """What goes wrong with one unit."""

    kind: str
    share: float
    """How much of the unit is answered before."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What takes time, in seconds."""

    start_s: float = 20.0
    tokens_per_s: float = 20_000.0
    message_s: float = 0.001
    """From a report to the driver, and from the driver to the next unit's first token."""
    noise: float = 0.1
    """Standard deviation of a unit's time, as a share."""


@dataclass(slots=True)
class _Process:
    """One start of a replica."""

    tokens: int = 0
    is_alive: bool = True


@dataclass(slots=True)
class SimulatedReplicas:
    """Implements `driving.Replicas` in virtual time."""

    costs: Costs = field(default_factory=Costs)
    fate: Fate = lambda _replica, _unit, _random: None
    seed: int = 0
    counts_real_time: bool = False
    """Whether the time the driver really takes passes in the simulation, too."""
    starts: int = 0
    busy_s: float = 0.0
    """Time replicas spent on units, added up."""
    _now: float = 0.0
    _left_s: float | None = None
    _events: list[tuple[float, int, _Process, Event]] = field(default_factory=list)
    _processes: dict[int, _Process] = field(default_factory=dict)
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def now(self) -> float:
        """See `Replicas.now`."""
        return self._now

    def start(self, replica: int) -> None:
        """See `Replicas.start`."""
        self.starts += 1
        self._processes[replica] = process = _Process()
        self._push(self.costs.start_s, process, Event(replica))

    def give(self, replica: int, ticket: int, unit: WorkUnit) -> None:
        """See `Replicas.give`: all that will happen is put on the calendar."""
        mishap = self.fate(replica, unit, self._random)
        process = self._processes[replica]
        noise = max(0.2, self._random.gauss(1.0, self.costs.noise))
        whole_s = unit.tokens / self.costs.tokens_per_s * noise
        done = len(unit.requests) if mishap is None else int(mishap.share * len(unit.requests))
        step = max(1, min(REPORT_ANSWERS, int(len(unit.requests) * REPORT_S / max(whole_s, 1e-9))))
        before = process.tokens
        for first in range(0, done, step):
            last = min(first + step, done)
            process.tokens = before + max(1, unit.tokens * last // len(unit.requests))
            report = self._report(process, ticket, unit, first, last)
            self._push(self._after(whole_s, last, unit), process, Event(replica, report))
        self.busy_s += whole_s * done / len(unit.requests)
        self._end(replica, ticket, unit, mishap, self._after(whole_s, done, unit))

    def stop(self, replica: int) -> None:
        """See `Replicas.stop`."""
        if replica in self._processes:
            self._processes.pop(replica).is_alive = False

    def wait(self, timeout_s: float) -> list[Event]:
        """See `Replicas.wait`: the clock jumps to the next event."""
        if self.counts_real_time and self._left_s is not None:
            self._now += time.perf_counter() - self._left_s
        until = self._now + timeout_s
        found: list[Event] = []
        while self._events and self._events[0][0] <= (self._now if found else until):
            at, _, process, event = heapq.heappop(self._events)
            if process.is_alive:
                self._now = max(self._now, at)
                found.append(event)
        if not found:
            self._now = until
        self._left_s = time.perf_counter()
        return found

    def _push(self, delay_s: float, process: _Process, event: Event) -> None:
        entry = (self._now + delay_s, len(self._events) + self._random.random(), process, event)
        heapq.heappush(self._events, entry)

    def _after(self, whole_s: float, done: int, unit: WorkUnit) -> float:
        return whole_s * done / len(unit.requests) + 2 * self.costs.message_s

    def _report(
        self, process: _Process, ticket: int, unit: WorkUnit, first: int, last: int
    ) -> Report:
        answers = [answer_of(request.index) for request in unit.requests[first:last]]
        return Report(ticket, answers, TokenCounts(forwarded=process.tokens))

    def _end(
        self, replica: int, ticket: int, unit: WorkUnit, mishap: Mishap | None, delay_s: float
    ) -> None:
        process = self._processes[replica]
        counts = TokenCounts(forwarded=process.tokens)
        kind = "" if mishap is None else mishap.kind
        if kind == "dies":
            self._push(delay_s, process, Event(replica, failure="its process died"))
        elif kind == "reports a fault":
            report = Report(ticket, [], counts, fault="MemoryError: ")
            self._push(delay_s, process, Event(replica, report))
        elif kind == "hangs":
            for number in range(1, 20):
                report = Report(ticket, [], counts)
                self._push(delay_s + number * 100.0, process, Event(replica, report))
        elif kind != "is silent":
            again = [answer_of(request.index) for request in unit.requests]
            report = Report(ticket, again if kind == "answers twice" else [], counts, True)
            self._push(delay_s, process, Event(replica, report))
            if kind == "answers twice":
                self._push(delay_s + 1.0, process, Event(replica, report))


def answer_of(index: int) -> Score:
    """Return the answer to a request: a number that belongs to it alone."""
    return Score(index, -1.0 - index * 0.001, index % 2 == 0)
