"""Decides which replica gets which work unit, and what happens when one fails.

Units go out one at a time, largest first, to whoever is idle. What fails is done again, by another
replica if there is one. A unit that keeps failing is taken apart, half by half, down to the
request that kills replicas; that one is set aside. Every answer is passed on once.

Driven by calls that say what happened and when: no clock, no processes, so that a simulation and
Ray share it. Standard library only.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from lm_eval_exl2.errors import ReplicaError
from lm_eval_exl2.replicas.cut import WorkUnit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lm_eval_exl2.replicas.cut import Answer, Request
    from lm_eval_exl2.replicas.limits import Limits


class State(Enum):
    """What a replica is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RETIRED = "retired"
    """Given up for good."""


@dataclass(slots=True)
class _Job:
    """A unit, and what has become of it so far."""

    unit: WorkUnit
    failures: int = 0
    failed_on: int | None = None
    is_suspect: bool = False
    """Whether it, or the unit it is a part of, has failed before."""


@dataclass(slots=True)
class _Member:
    """What is known of one replica."""

    state: State = State.STOPPED
    since: float = 0.0
    """When it last showed progress."""
    tokens: int = 0
    """Its token counter then."""
    strikes: int = 0
    job: _Job | None = None
    ticket: int = 0


class Assignment(NamedTuple):
    """A unit for a replica."""

    replica: int
    ticket: int
    unit: WorkUnit


class SetAside(NamedTuple):
    """A request that kills or stalls the replicas that take it."""

    request: Request
    reason: str
    """How the last one of them failed."""


@dataclass(slots=True)
class Totals:
    """How far the current list of units is."""

    units: int = 0
    """Those that another was taken apart into count instead of it."""
    finished: int = 0
    tokens: int = 0
    finished_tokens: int = 0


class Dealer:
    """Deals the units of one list after another to the same replicas."""

    def __init__(self, replicas: int, limits: Limits) -> None:
        """Know so many replicas, none of them started."""
        self.totals = Totals()
        self.set_aside: list[SetAside] = []
        self.restarts, self.last_failure = 0, ""
        self._limits = limits
        self._members = [_Member() for _ in range(replicas)]
        self._queue: list[tuple[int, int, _Job]] = []  # a heap: the largest first, then in order
        self._unanswered: set[int] = set()
        self._longest_pause = 0.0
        self._failures_in_a_row = 0
        self._number = 0

    # -- the work ----------------------------------------------------------------------------

    def begin(self, units: Iterable[WorkUnit]) -> None:
        """Take a new list of units; the one before must be done or abandoned."""
        self.totals, self.set_aside, self._queue = Totals(), [], []
        self._unanswered = set()
        for unit in units:
            self._put(_Job(unit))
            self._unanswered.update(request.index for request in unit.requests)
            self.totals.units += 1
            self.totals.tokens += unit.tokens

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to deal or to wait for."""
        return not self._queue and not self.replicas(State.BUSY)

    def replicas(self, *states: State) -> list[int]:
        """Return the replicas in any of some states."""
        return [number for number, each in enumerate(self._members) if each.state in states]

    def assign(self, now: float) -> list[Assignment]:
        """Give units to idle replicas; return what was given."""
        given: list[Assignment] = []
        for replica in self.replicas(State.IDLE):
            job = self._pop(replica)
            if job is not None:
                member = self._members[replica]
                self._number += 1
                member.state, member.job, member.ticket = State.BUSY, job, self._number
                member.since = now
                given.append(Assignment(replica, member.ticket, job.unit))
        return given

    # -- what happens ------------------------------------------------------------------------

    def starting(self, replica: int, now: float) -> None:
        """Note that a replica is being started."""
        member = self._members[replica]
        member.state, member.since, member.tokens = State.STARTING, now, 0

    def started(self, replica: int) -> None:
        """Note that a replica can work."""
        self._members[replica].state = State.IDLE

    def stopped(self, replica: int) -> None:
        """Note that a replica was stopped on purpose, and its unit abandoned."""
        self._members[replica].state, self._members[replica].job = State.STOPPED, None

    def holds(self, replica: int, ticket: int) -> bool:
        """Return whether a replica still has the unit it was given with this ticket."""
        member = self._members[replica]
        return member.state is State.BUSY and member.ticket == ticket

    def progress(
        self, replica: int, tokens: int, answers: Sequence[Answer], now: float
    ) -> list[Answer]:
        """Note a report of a replica about the unit it has.

        Args:
            replica: Who reports.
            tokens: Its token counter.
            answers: Answers since the last report.
            now: Seconds.

        Returns:
            The answers that were not known before.
        """
        member = self._members[replica]
        if tokens > member.tokens or answers:
            self._longest_pause = max(self._longest_pause, now - member.since)
            member.tokens, member.since = tokens, now
        fresh: list[Answer] = []
        for answer in answers:
            if answer.index in self._unanswered:
                self._unanswered.remove(answer.index)
                fresh.append(answer)
        return fresh

    def finished(self, replica: int, now: float) -> bool:
        """Note the end of a unit; return False if answers are missing, which is a failure."""
        member = self._members[replica]
        if member.job is None or self._left_of(member.job):
            return False
        self._longest_pause = max(self._longest_pause, now - member.since)
        self._count(member.job)
        member.state, member.job, member.strikes = State.IDLE, None, 0
        self._failures_in_a_row = 0
        return True

    def failed(self, replica: int, reason: str) -> bool:
        """Note that a replica died, hangs or could not be started.

        Returns:
            Whether to start it again.

        Raises:
            ReplicaError: too much has failed for the run to go on.
        """
        self.last_failure = reason
        member, job = self._members[replica], self._members[replica].job
        member.state, member.job = State.STOPPED, None
        if job is None or not job.is_suspect:
            member.strikes += 1  # a unit that failed before is to blame itself
        if job is not None:
            job.failures, job.failed_on, job.is_suspect = job.failures + 1, replica, True
            self._put_back(job, reason)
        self._failures_in_a_row += 1
        if member.strikes >= self._limits.strikes:
            member.state = State.RETIRED
        self._check_limits()
        self.restarts += member.state is State.STOPPED
        return member.state is State.STOPPED

    def stalled(self, now: float) -> list[int]:
        """Return the replicas that show no progress for too long."""
        stall_s = max(self._limits.stall_s, self._limits.stall_pauses * self._longest_pause)
        longest = {State.BUSY: stall_s, State.STARTING: self._limits.start_s}
        return [
            replica
            for replica, member in enumerate(self._members)
            if now - member.since > longest.get(member.state, float("inf"))
        ]

    # -- inside ------------------------------------------------------------------------------

    def _put(self, job: _Job) -> None:
        self._number += 1
        heapq.heappush(self._queue, (-job.unit.tokens, self._number, job))

    def _pop(self, replica: int) -> _Job | None:
        """Take the largest unit; one that last failed on this replica only if it is alone."""
        others = len(self.replicas(State.IDLE, State.BUSY)) > 1
        passed: list[tuple[int, int, _Job]] = []
        found = None
        while self._queue and found is None:
            entry = heapq.heappop(self._queue)
            if entry[2].failed_on == replica and others:
                passed.append(entry)
            else:
                found = entry[2]
        for entry in passed:
            heapq.heappush(self._queue, entry)
        return found

    def _left_of(self, job: _Job) -> list[Request]:
        return [each for each in job.unit.requests if each.index in self._unanswered]

    def _count(self, job: _Job) -> None:
        self.totals.finished += 1
        self.totals.finished_tokens += job.unit.tokens

    def _put_back(self, job: _Job, reason: str) -> None:
        """Queue a unit that failed: whole, in halves of what is unanswered, or not at all."""
        left = self._left_of(job)
        if not left:
            self._count(job)  # it failed behind its last answer
        elif job.failures < self._limits.tries:
            self._put(job)
        elif len(left) == 1:
            self.set_aside.append(SetAside(left[0], reason))
            self._unanswered.discard(left[0].index)
            self._count(job)
        else:
            self._take_apart(job, left)

    def _take_apart(self, job: _Job, left: list[Request]) -> None:
        middle = len(left) // 2
        self.totals.finished_tokens += job.unit.tokens
        for part in (left[:middle], left[middle:]):
            tokens = job.unit.tokens * len(part) // len(job.unit.requests)
            self.totals.finished_tokens -= tokens
            unit = WorkUnit(part, tokens, job.unit.ending)
            # Nothing is concluded about a single request from the company it was in.
            failures = self._limits.tries - 1 if len(part) > 1 else 0
            self._put(_Job(unit, failures, job.failed_on, is_suspect=True))
        self.totals.units += 1

    def _check_limits(self) -> None:
        if len(self.set_aside) > self._limits.set_aside:
            raise ReplicaError(
                f"more than {self._limits.set_aside} requests end replicas, the last one by: "
                f"{self.last_failure}; a smaller max_batch_tokens or max_length may help"
            )
        if len(self.replicas(State.RETIRED)) == len(self._members):
            raise ReplicaError(
                f"no replica is left: each failed {self._limits.strikes} times in a row, the last "
                f"time by: {self.last_failure}"
            )
        if self._failures_in_a_row > self._limits.failures_in_a_row:
            raise ReplicaError(
                f"replicas failed {self._failures_in_a_row} times without finishing a unit, the "
                f"last time by: {self.last_failure}"
            )
