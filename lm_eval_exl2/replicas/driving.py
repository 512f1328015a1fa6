"""Runs work units on replicas: gives, listens, restarts, and passes answers on as they come.

What is decided is `dealing`'s business; how replicas are reached is that of the `Replicas` given.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lm_eval_exl2.errors import ReplicaError
from lm_eval_exl2.replicas.dealing import Dealer, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lm_eval_exl2.errors import Exl2EvalError
    from lm_eval_exl2.replicas.cut import Answer, WorkUnit
    from lm_eval_exl2.replicas.limits import Limits
    from lm_eval_exl2.replicas.replica import Report

logger = logging.getLogger(__name__)

# How long to listen before looking for replicas that say nothing.
_LISTEN_S = 1.0


class Event(NamedTuple):
    """What happened to a replica."""

    replica: int
    report: Report | None = None
    """A report about its unit; with neither report nor failure, it has started."""
    failure: str = ""
    """How it died, in words."""
    error: Exl2EvalError | None = None
    """Why it will never start."""


class Replicas(Protocol):
    """Processes that can be started, given units, listened to and stopped; numbered from 0."""

    def now(self) -> float:
        """Return seconds of a clock that never goes back."""
        ...

    def start(self, replica: int) -> None:
        """Begin to start a replica; an event follows."""
        ...

    def give(self, replica: int, ticket: int, unit: WorkUnit) -> None:
        """Give a unit to an idle replica; events with reports follow until it ends."""
        ...

    def stop(self, replica: int) -> None:
        """End a replica whatever it is doing; no event of it follows."""
        ...

    def wait(self, timeout_s: float) -> Iterable[Event]:
        """Return what has happened, waiting for something up to a time."""
        ...


class Driver:
    """Drives some replicas through lists of units."""

    def __init__(self, replicas: Replicas, count: int, limits: Limits) -> None:
        """Take replicas, none of them started."""
        self.dealer = Dealer(count, limits)
        self._replicas = replicas
        self._is_up = False
        self._error: Exl2EvalError | None = None
        """Why the run must end; raised once what is known has been passed on."""

    def start(self) -> None:
        """Start all replicas and wait for them.

        Raises:
            ReplicaError: one of them cannot be started.
            Exl2EvalError: one of them cannot open the checkpoint.
        """
        self._start_stopped()
        while self.dealer.replicas(State.STARTING):
            self._listen()
            self._raise_error()
        if gone := self.dealer.replicas(State.RETIRED):
            raise ReplicaError(f"replica {gone[0]} cannot be started: {self.dealer.last_failure}")
        self._is_up = True

    def run(
        self, units: Iterable[WorkUnit], between_steps: Callable[[], None] = lambda: None
    ) -> Iterator[Answer]:
        """Have units answered, passing on each answer once, as it comes.

        Requests that kill replicas are left out, see `Dealer.set_aside`. A caller that stops
        listening stops the replicas that are at work; the next run starts them again.

        Args:
            units: What to do.
            between_steps: Called at least once a second, when all answers known are passed on;
                may raise to end the run.

        Raises:
            ReplicaError: too much has failed to go on.
            Exl2EvalError: a request or the model is at fault, as in a single process.
        """
        self.dealer.begin(units)
        self._start_stopped()
        self._assign()
        try:
            while not self.dealer.is_done:
                answers = self._listen()
                self._assign()  # before the caller takes its time with the answers
                yield from answers
                self._raise_error()
                between_steps()
        finally:
            for replica in self.dealer.replicas(State.BUSY):
                self._replicas.stop(replica)
                self.dealer.stopped(replica)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _start_stopped(self) -> None:
        for replica in self.dealer.replicas(State.STOPPED):
            self._start(replica)

    def _start(self, replica: int) -> None:
        self.dealer.starting(replica, self._replicas.now())
        self._replicas.start(replica)

    def _assign(self) -> None:
        for replica, ticket, unit in self.dealer.assign(self._replicas.now()):
            self._replicas.give(replica, ticket, unit)

    def _listen(self) -> list[Answer]:
        """Wait for events and act on them; return the answers that are new."""
        answers: list[Answer] = []
        for event in self._replicas.wait(_LISTEN_S):
            if event.report is not None:
                answers += self._take(event.replica, event.report)
            elif event.error is not None and not self._is_up:
                self._error = event.error
            elif event.error is not None or event.failure:
                self._fail(event.replica, event.failure or str(event.error))
            else:
                self.dealer.started(event.replica)
        for replica in self.dealer.stalled(self._replicas.now()):
            self._fail(replica, "no progress for too long")
        return answers

    def _take(self, replica: int, report: Report) -> list[Answer]:
        if not self.dealer.holds(replica, report.ticket):
            return []  # about a unit that has been taken back
        now = self._replicas.now()
        tokens = report.counts.forwarded + report.counts.retried
        fresh = self.dealer.progress(replica, tokens, report.answers, now)
        if report.error is not None:
            self._error = report.error
        elif report.fault:
            self._fail(replica, report.fault)
        elif report.is_finished and not self.dealer.finished(replica, now):
            self._fail(replica, "it finished a unit without all of its answers")
        return fresh

    def _fail(self, replica: int, reason: str) -> None:
        self._replicas.stop(replica)
        try:
            again = self.dealer.failed(replica, reason)
        except ReplicaError as error:
            self._error = error
            return
        fate = "it is started again" if again else "it is given up"
        logger.warning("replica %d failed (%s); %s", replica, reason, fate)
        if again:
            self._start(replica)
