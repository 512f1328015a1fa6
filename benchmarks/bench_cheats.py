"""Systems under test that cheat, one way each: what the honesty checks are held against.

Used by tests and by `bench_cpu.py`; none of it is part of the package.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.bench.scenarios import Reporter
from lm_eval_exl2.records import GeneratedToken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_exl2.bench.loadgen_process import LoadGenProcess


class Wrapped:
    """An engine that is another one, but for how it generates."""

    def __init__(self, engine: Any) -> None:
        """Wrap an engine."""
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


class MadeUpFirstToken(Wrapped):
    """Hands out a token before it has computed any, and drops the real first one."""

    def generate(self, requests: Any, is_finished: Any) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""
        begun: set[int] = set()
        for token in self.engine.generate(requests, is_finished):
            made_up = token.index not in begun
            begun.add(token.index)
            token_id = (token.token_id + 1) % self.info.vocab_size if made_up else token.token_id
            yield GeneratedToken(token.index, token_id, token.is_last)


class GoesOnAfterTheEnd(Wrapped):
    """Does not stop at the end token, which makes more tokens per second."""

    def generate(self, requests: Any, is_finished: Any) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""

        def never(index: int, token: int) -> bool:
            is_finished(index, token)
            return False

        return self.engine.generate(requests, never)


class SecondEnd(Wrapped):
    """Repeats the end token, a token that costs nothing."""

    def generate(self, requests: Any, is_finished: Any) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""
        for token in self.engine.generate(requests, is_finished):
            if token.is_last:
                yield GeneratedToken(token.index, token.token_id, False)
            yield token


class ShortestFirst(Wrapped):
    """Takes all queries there are and answers the short ones first."""

    def generate(self, requests: Any, is_finished: Any) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""
        source = iter(requests)
        while (first := next(source, None)) is not None:
            time.sleep(0.05)  # until more have come
            taken = [first]
            while (request := next(source, None)) is not None:
                taken.append(request)
            taken.sort(key=lambda each: len(each.prompt_ids))
            yield from self.engine.generate(taken, is_finished)


class EarlyFirstToken(Reporter):
    """Reports a first token as soon as a query is issued."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "process" and value is not None:
            self._report_at_issue(value)

    def _report_at_issue(self, process: LoadGenProcess) -> None:
        submit = process._issue

        def issue(sample: int) -> None:
            # A process that starts so fast that a query has come already makes this check moot.
            process.first_token(submit(sample), 0)

        process._issue = issue

    def first_token(self, number: int, token_id: int) -> None:
        """Say nothing: it has been said."""


class WrongCount(Reporter):
    """Reports more tokens than there are."""

    def finished(self, request: Any) -> None:
        """See `Listener.finished`."""
        count = len(request.token_ids) + 3
        self.process.done(request.number, count, request.token_ids)


class OtherText(Reporter):
    """Reports another text of the same length than the engine produced."""

    def finished(self, request: Any) -> None:
        """See `Listener.finished`."""
        ids = [*request.token_ids[:1], *(0 for _ in request.token_ids[1:])]
        self.process.done(request.number, len(ids), ids)
