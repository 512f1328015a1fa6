"""Requests in, tokens with the time of each out: the one path of every measurement.

One thread computes: it pulls `Engine.generate`, which pulls requests as room becomes free, so that
arrivals join a running batch. Any thread may submit. Knows ids and times; no text, no scenario.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lm_eval_exl2.bench.records import FINISHED, UNFINISHED, TimedRequest
from lm_eval_exl2.records import GenerateRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval_exl2.engines.base import Engine


class Listener(Protocol):
    """Is told of tokens while they come, on the computing thread."""

    def first_token(self, number: int, token_id: int) -> None:
        """Take the first token of a request."""
        ...

    def finished(self, request: TimedRequest) -> None:
        """Take a request whose last token has come."""
        ...


@dataclass(slots=True)
class _Entry:
    """What is known of a request so far."""

    sample: int
    prompt_tokens: int
    issued_s: float
    started: int | None = None
    is_done: bool = False
    token_ids: list[int] = field(default_factory=list[int])
    times_s: list[float] = field(default_factory=list[float])


class Driver:
    """Answers requests with one engine and keeps the times. Decoding is greedy."""

    def __init__(
        self,
        engine: Engine,
        *,
        end_ids: frozenset[int],
        listener: Listener | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start without requests.

        Args:
            engine: Computes.
            end_ids: Tokens that end a text; empty to let every request run to its limit.
            listener: Is told of tokens.
            clock: Seconds, of a clock that never goes back.
        """
        self._engine = engine
        self._end_ids = end_ids
        self._listener = listener
        self._clock = clock
        self._entries: list[_Entry] = []
        self._waiting: deque[GenerateRequest] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._stop_s = math.inf
        self._open = 0  # taken by the engine and not finished; the computing thread's own
        self._started = 0

    # -- from any thread -------------------------------------------------------------------

    def submit(self, sample: int, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
        """Hand in a request; return its number, its place in the order of issue."""
        issued_s = self._clock()
        with self._changed:
            number = len(self._entries)
            self._entries.append(_Entry(sample, len(prompt_ids), issued_s))
            self._waiting.append(
                GenerateRequest(number, prompt_ids, max_new_tokens, stop_ids=self._end_ids)
            )
            self._changed.notify()
        return number

    def close(self) -> None:
        """Say that no more requests come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def abort(self) -> None:
        """Give up everything that has not finished."""
        with self._changed:
            self._is_closed = True
            self._stop_s = -math.inf
            self._changed.notify()

    # -- computing -------------------------------------------------------------------------

    def run(self, *, give_up_s: float = math.inf) -> None:
        """Answer until all is closed and answered, or until it is time to give up.

        What an engine raises passes through; `requests` then still gives what there is.

        Args:
            give_up_s: Stop so many seconds from now, whatever has not finished.
        """
        self._stop_s = min(self._stop_s, self._clock() + give_up_s)
        for token in self._engine.generate(self._arrivals(), self._is_end):
            now_s = self._clock()
            entry = self._entries[token.index]
            entry.token_ids.append(token.token_id)
            entry.times_s.append(now_s)
            if self._listener and len(entry.token_ids) == 1:
                self._listener.first_token(token.index, token.token_id)
            if token.is_last:
                entry.is_done = True
                self._open -= 1
                if self._listener:
                    self._listener.finished(self._record(token.index))
            if now_s >= self._stop_s:
                return

    def _is_end(self, _index: int, token_id: int) -> bool:
        return token_id in self._end_ids

    def _arrivals(self) -> Iterator[GenerateRequest | None]:
        """Yield requests as they come; None while others are being answered."""
        while True:
            with self._changed:
                while not (self._waiting or self._open or self._is_over()):
                    left_s = self._stop_s - self._clock()
                    self._changed.wait(None if left_s == math.inf else left_s)
                request = self._take()
                if request is None and self._is_over():
                    return
            yield request

    def _is_over(self) -> bool:
        return self._is_closed or self._clock() >= self._stop_s

    def _take(self) -> GenerateRequest | None:
        """Take the request that has waited longest, if any."""
        if not self._waiting or self._clock() >= self._stop_s:  # nothing new is begun then
            return None
        request = self._waiting.popleft()
        self._entries[request.index].started = self._started
        self._started += 1
        self._open += 1
        return request

    # -- afterwards ------------------------------------------------------------------------

    def requests(self) -> list[TimedRequest]:
        """Return everything that was submitted, in that order."""
        return [self._record(number) for number in range(len(self._entries))]

    def _record(self, number: int) -> TimedRequest:
        entry = self._entries[number]
        return TimedRequest(
            number=number,
            sample=entry.sample,
            prompt_tokens=entry.prompt_tokens,
            issued_s=entry.issued_s,
            started=entry.started,
            token_ids=tuple(entry.token_ids),
            token_times_s=tuple(entry.times_s),
            outcome=FINISHED if entry.is_done else UNFINISHED,
        )
