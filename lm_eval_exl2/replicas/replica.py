"""One replica: opens the checkpoint where it is, answers one work unit at a time and reports.

A unit runs in a thread of its own, so that reports come whether or not the engine moves: whoever
reads them sees from the token counter if it does. Knows nothing of Ray or of other replicas.
"""

from __future__ import annotations

import os
import socket
from copy import deepcopy
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple, cast

from lm_eval_exl2 import __version__
from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.computing import OneProcess
from lm_eval_exl2.encode import Encoder, load_tokenizer
from lm_eval_exl2.engines.select import open_engine
from lm_eval_exl2.errors import EngineMemoryError, Exl2EvalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval_exl2.generation import Prompt
    from lm_eval_exl2.options import Options
    from lm_eval_exl2.records import EngineInfo, ScoreRequest, TokenCounts
    from lm_eval_exl2.replicas.cut import Answer, WorkUnit

# A report comes after so long, or when so many answers wait.
REPORT_S = 1.0
REPORT_ANSWERS = 64


class About(NamedTuple):
    """What a replica is."""

    node: str
    """Where it runs, in words."""
    pid: int
    version: str
    """Of this package."""
    digest: str
    """Of the checkpoint it has opened."""
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica has done since its last report."""

    ticket: int
    """Of the unit, as it was given."""
    answers: list[Answer]
    counts: TokenCounts
    """Of the engine, since it was opened."""
    is_finished: bool = False
    """Whether all answers of the unit have been reported."""
    error: Exl2EvalError | None = None
    """The request or the model is at fault: doing it again would end the same way."""
    fault: str = ""
    """Anything else that ended the unit, in words: another try may succeed."""


@dataclass(slots=True)
class _Task:
    """A unit that is being answered; as a context it notes how that ended."""

    ticket: int
    unit: WorkUnit
    wake: Event
    found: SimpleQueue[Answer]
    failure: BaseException | None = None
    is_done: bool = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, failure: BaseException | None, _trace: object) -> bool:
        self.failure = failure
        self.is_done = True
        self.wake.set()
        return True


class Replica:
    """Answers work units with a computer of its own."""

    def __init__(self) -> None:
        """Make a replica without a model; see `open`."""
        self.computer: OneProcess
        self._wake = Event()
        self._task: _Task | None = None
        self._given: SimpleQueue[_Task] = SimpleQueue()
        # A daemon: a process that is told to end must not wait for a unit, which may hang.
        Thread(target=self._work, name="replica", daemon=True).start()

    def open(self, options: Options) -> About:
        """Find and load the checkpoint on this machine.

        Args:
            options: Of the whole run.

        Raises:
            Exl2EvalError: it cannot be found or loaded here.
        """
        location = locate(
            options.pretrained, revision=options.revision, subfolder=options.subfolder
        )
        checkpoint = Checkpoint(location.directory)
        encoder = Encoder(
            load_tokenizer(options, location.directory),
            add_bos_token=options.add_bos_token,
            prefix_token_id=options.prefix_token_id,
        )
        self.computer = OneProcess(open_engine(checkpoint, options), encoder, options)
        node = socket.gethostname()
        return About(node, os.getpid(), __version__, checkpoint.digest(), self.computer.info)

    def give(self, ticket: int, unit: WorkUnit) -> None:
        """Start answering a unit; the one before must be finished.

        Args:
            ticket: Is repeated in the reports.
            unit: What to answer.
        """
        self._task = _Task(ticket, unit, self._wake, SimpleQueue())
        self._given.put(self._task)

    def take(self) -> Report:
        """Wait for answers, the end of the unit or the time to show a sign of life; report.

        Raises:
            RuntimeError: there is no unit.
        """
        if self._task is None:
            raise RuntimeError("a replica was asked for a report without a unit")
        self._wake.wait(REPORT_S)
        self._wake.clear()
        is_done = self._task.is_done  # asked first: what it found is all in the queue then
        answers = list(_drained(self._task.found))
        counts = deepcopy(self.computer.counts)
        report = Report(self._task.ticket, answers, counts)
        if not is_done:
            return report
        failure, self._task = self._task.failure, None
        if failure is None:
            return replace(report, is_finished=True)
        if isinstance(failure, Exl2EvalError) and not isinstance(failure, EngineMemoryError):
            return replace(report, error=failure)
        reason = " ".join(str(failure).split())[:300]
        return replace(report, fault=f"{type(failure).__name__}: {reason}")

    def _work(self) -> None:
        while True:
            task = self._given.get()
            with task:
                for answer in self._answers(task.unit):
                    task.found.put(answer)
                    if task.found.qsize() >= REPORT_ANSWERS:
                        self._wake.set()

    def _answers(self, unit: WorkUnit) -> Iterator[Answer]:
        if unit.ending is None:
            return self.computer.score(cast("Sequence[ScoreRequest]", unit.requests))
        return self.computer.generate(cast("Sequence[Prompt]", unit.requests), unit.ending)


def _drained(found: SimpleQueue[Answer]) -> Iterator[Answer]:
    while True:
        try:
            yield found.get_nowait()
        except Empty:
            return
