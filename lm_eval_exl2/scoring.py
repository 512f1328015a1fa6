"""Score requests -> scores, by way of the prefix tree: each position is forwarded once.

Knows the order of the steps and nothing of how any of them works.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.plan import Budget, Targets, count_rows, next_chunk
from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.records import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval_exl2.engines.base import Engine
    from lm_eval_exl2.prefix_tree import PrefixTree
    from lm_eval_exl2.records import ChunkScores, PackedChunk, ScoreRequest


def score(
    requests: Sequence[ScoreRequest],
    engine: Engine,
    budget: Budget,
    between_steps: Callable[[], None] = lambda: None,
) -> Iterator[Score]:
    """Score all requests, yielding each as soon as its last target is known.

    A score depends on its own request alone: not on order, siblings, duplicates or budget
    (up to the rounding of the engine's arithmetic). Log-probabilities of a target are summed
    exactly, in float64.

    Args:
        requests: Contexts and targets, both non-empty.
        engine: Forwards the chunks.
        budget: Size of a forward; halved for good when memory runs out.
        between_steps: Called before each forward, when all scores known so far are given out.

    Raises:
        EngineMemoryError: not even one token fits.
    """
    # The last target token is never an input: nothing follows it.
    sequences = [[*request.context_ids, *request.target_ids[:-1]] for request in requests]
    tree, positions = build_tree(sequences, [len(request.target_ids) for request in requests])
    book = _Book(requests, positions)
    for chunk, scores in _run(tree, book.targets, engine, budget, between_steps):
        yield from book.enter(chunk, scores)


def score_naively(requests: Sequence[ScoreRequest], engine: Engine) -> Iterator[Score]:
    """Score each request by a forward of its own: the slow twin of `score`, for checking it."""
    for request in requests:
        found = engine.score_naively(
            [*request.context_ids, *request.target_ids], len(request.target_ids)
        )
        yield Score(request.index, math.fsum(found.logprobs), all(found.is_argmax))


def count_tokens(requests: Sequence[ScoreRequest]) -> int:
    """Return the positions `score` will forward: the distinct proper prefixes of all requests."""
    sequences = [[*request.context_ids, *request.target_ids[:-1]] for request in requests]
    tree, _ = build_tree(sequences, [0] * len(sequences))
    return len(tree)


def _run(
    tree: PrefixTree,
    targets: Targets,
    engine: Engine,
    budget: Budget,
    between_steps: Callable[[], None],
) -> Iterator[tuple[PackedChunk, ChunkScores]]:
    start = 0
    while start < len(tree):
        between_steps()
        chunk = next_chunk(tree, targets, start, budget)
        try:
            scores = engine.score(chunk)
        except StepTooLargeError as error:
            engine.counts.retried += len(chunk.token_ids)
            smaller = Budget(len(chunk.token_ids), budget.rows).halved()
            if smaller is None:
                raise EngineMemoryError(
                    f"a forward of one token after {chunk.depths[0]} does not fit into memory; "
                    "use a smaller max_length or a device with more memory"
                ) from error
            budget = smaller
            continue
        rows = engine.counts.batch_sizes
        rows["loglikelihood"] = max(rows.get("loglikelihood", 0), count_rows(chunk))
        yield chunk, scores
        start = chunk.stop


class _Book:
    """Which request waits for which (position, token) pair, and what it has got so far."""

    def __init__(self, requests: Sequence[ScoreRequest], positions: Sequence[Sequence[int]]):
        pairs = sorted(
            {
                pair
                for request, places in zip(requests, positions, strict=True)
                for pair in zip(places, request.target_ids, strict=True)
            }
        )
        self.targets = Targets([place for place, _ in pairs], [token for _, token in pairs])
        self._number = {pair: number for number, pair in enumerate(pairs)}
        self._logprobs: list[float] = [math.nan] * len(pairs)
        self._is_argmax: list[bool] = [False] * len(pairs)
        self._entered = 0
        # A request is complete once its deepest pair is; deeper positions come later.
        by_last = sorted(range(len(requests)), key=lambda i: positions[i][-1])
        self._waiting = iter([(requests[i], positions[i]) for i in by_last])
        self._next = next(self._waiting, None)

    def enter(self, chunk: PackedChunk, scores: ChunkScores) -> Iterator[Score]:
        """Note the scores of a chunk and yield the requests they complete."""
        first, last = self._entered, self._entered + len(scores.logprobs)
        self._logprobs[first:last] = scores.logprobs
        self._is_argmax[first:last] = scores.is_argmax
        self._entered = last
        while self._next and self._next[1][-1] < chunk.stop:
            request, places = self._next
            numbers = [self._number[pair] for pair in zip(places, request.target_ids, strict=True)]
            yield Score(
                request.index,
                math.fsum(self._logprobs[number] for number in numbers),
                all(self._is_argmax[number] for number in numbers),
            )
            self._next = next(self._waiting, None)
