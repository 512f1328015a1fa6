"""Cuts requests into work units: what one replica does in one go.

Requests are put in the order of their tokens, so that neighbours share their beginnings, and the
list is cut into runs. A run is a part of the whole prefix tree: a cut in front of a request
forwards again what that request shares with the one before, and nothing else.

The rule: a unit ends at the cheapest cut between its least size and twice that, provided that the
cut costs at most a sixteenth of the unit; else at the first later cut that does. So all cuts
together repeat at most 1/15 of the tokens, and a unit is larger than twice the least size only
where a smaller one would be mostly repetition. The least size depends on the requests, never on
the number of replicas: the same requests give the same units, and these the same answers.

Knows ids, nothing of replicas, text or engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lm_eval_exl2.prefix_tree import shared_length, sort_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.generation import Continuation, Ending, Prompt
    from lm_eval_exl2.records import Score, ScoreRequest

    Request = ScoreRequest | Prompt
    Answer = Score | Continuation

# A cut may repeat one token in so many of the unit before it.
_REPEATED_SHARE = 16
# About 2048 units or more, so that 64 replicas end within 5 % of each other; but none below 8192
# tokens, four forwards of the CPU's budget, and none so large that doing it again hurts.
_UNITS = 2048
_LEAST_TOKENS, _MOST_TOKENS = 1 << 13, 1 << 18
# A unit of prompts is one call of an engine, which starts with up to 64 rows (torch) and runs
# emptier as texts end: fewer prompts waste places, more leave replicas idle at the end.
_PROMPT_UNITS = 64
_LEAST_PROMPTS, _MOST_PROMPTS = 32, 256


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Requests that one replica answers in one go."""

    requests: Sequence[Request]
    """All of one kind, in the order of their tokens."""
    tokens: int
    """Positions to forward; for prompts with as many produced tokens as are allowed."""
    ending: Ending | None = None
    """How texts end; None for scoring."""


class _Sequences(NamedTuple):
    """Sequences in the order of their tokens."""

    order: list[int]
    """Places in the caller's list."""
    shared: list[int]
    """How many leading tokens each has in common with the one before it."""


def cut_scoring(requests: Sequence[ScoreRequest]) -> list[WorkUnit]:
    """Cut score requests into work units.

    Every request is in exactly one of them, and a unit's `tokens` are exactly its distinct proper
    prefixes. Takes 4 bytes per token while it sorts.
    """
    # The last target token is never an input. Keys of two parts, joined, are the key of the whole.
    sorted_ = _sort(
        [sort_key(each.context_ids) + sort_key(each.target_ids[:-1]) for each in requests]
    )
    lengths = [
        len(requests[place].context_ids) + len(requests[place].target_ids) - 1
        for place in sorted_.order
    ]
    own = [length - shared for length, shared in zip(lengths, sorted_.shared, strict=True)]
    least = min(max(sum(own) // _UNITS, _LEAST_TOKENS), _MOST_TOKENS)
    return [
        WorkUnit(
            [requests[sorted_.order[place]] for place in run],
            sorted_.shared[run.start] + sum(own[run.start : run.stop]),
        )
        for run in _runs(own, sorted_.shared, least)
    ]


def cut_generation(prompts: Sequence[Prompt], ending: Ending) -> list[WorkUnit]:
    """Cut prompts into work units of 32 to 256 prompts of average size.

    Args:
        prompts: What to continue; each comes with its seed.
        ending: How texts end.
    """
    sorted_ = _sort([sort_key(prompt.token_ids) for prompt in prompts])
    ordered = [prompts[place] for place in sorted_.order]
    own = [
        len(prompt.token_ids) - shared + prompt.max_new_tokens
        for prompt, shared in zip(ordered, sorted_.shared, strict=True)
    ]
    count = min(max(len(prompts) // _PROMPT_UNITS, _LEAST_PROMPTS), _MOST_PROMPTS)
    least = max(1, sum(own) * count // max(1, len(prompts)))
    return [
        WorkUnit(
            ordered[run.start : run.stop],
            sorted_.shared[run.start] + sum(own[run.start : run.stop]),
            ending,
        )
        for run in _runs(own, sorted_.shared, least)
    ]


def _sort(keys: Sequence[bytes]) -> _Sequences:
    order = sorted(range(len(keys)), key=keys.__getitem__)
    before = [b"", *(keys[place] for place in order)]
    shared = [shared_length(one, keys[place]) for one, place in zip(before, order, strict=False)]
    return _Sequences(order, shared)


def _runs(own: Sequence[int], shared: Sequence[int], least: int) -> list[range]:
    """Cut items into runs by the rule above.

    Args:
        own: Tokens that each item adds behind the one before it.
        shared: Tokens that are forwarded again if a run begins with this item.
        least: Least size of a run.
    """
    runs: list[range] = []
    start = 0
    while start < len(own):
        stop = _end_of_run(own, shared, least, start)
        runs.append(range(start, stop))
        start = stop
    return runs


def _end_of_run(own: Sequence[int], shared: Sequence[int], least: int, start: int) -> int:
    size, cheapest, end = shared[start], None, len(own)
    for stop in range(start + 1, end + 1):
        size += own[stop - 1]
        if size >= 2 * least:
            if cheapest is not None and shared[cheapest] * _REPEATED_SHARE <= least:
                return cheapest
            if stop < end and shared[stop] * _REPEATED_SHARE <= size:
                return stop
        elif stop < end and size >= least:
            cheapest = stop if cheapest is None else min(cheapest, stop, key=shared.__getitem__)
    return end
