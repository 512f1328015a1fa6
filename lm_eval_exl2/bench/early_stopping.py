"""How many queries a percentile needs: LoadGen's early stopping, computed from the binomial.

If queries were over a limit independently, each with probability q = 1 - percentile, then k or
fewer of n would be over it with probability P(X <= k). Once that is 1 % or less, as few as k is
evidence (99 % confidence) that the share over the limit is below q. Source: MLPerf inference rules,
"Early stopping"; LoadGen's `early_stopping.cc` with tolerance 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE: Final = 0.99
MET: Final = "met"
NOT_MET: Final = "not met"
NOT_ENOUGH: Final = "not enough queries"


class Verdict(NamedTuple):
    """Whether a percentile of latencies is within a limit."""

    state: str
    """`met`, `not met`, or `not enough queries` to say either."""
    over: int
    """Latencies beyond the limit."""
    queries: int
    needed: int
    """Queries that would do if no further one were over the limit."""


def minimum_queries(over: int, percentile: float) -> int:
    """Return the fewest queries of which so many may be over the limit.

    Args:
        over: Queries over the limit.
        percentile: Such as 0.99.
    """
    enough = over + 1
    while _at_most(over, enough, percentile) > 1 - CONFIDENCE:
        enough *= 2
    too_few = over
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if _at_most(over, middle, percentile) > 1 - CONFIDENCE:
            too_few = middle
        else:
            enough = middle
    return enough


def judge(latencies: Sequence[float], limit: float, percentile: float = 0.99) -> Verdict:
    """Say whether a percentile is within a limit, as far as these latencies can tell.

    `not met` takes as much evidence as `met`: so many over the limit would be there by chance in
    1 % of runs or fewer if the percentile were just within it.
    """
    queries = len(latencies)
    over = sum(latency > limit for latency in latencies)
    needed = minimum_queries(over, percentile)
    if queries >= needed:
        state = MET
    elif over and 1 - _at_most(over - 1, queries, percentile) <= 1 - CONFIDENCE:
        state = NOT_MET
    else:
        state = NOT_ENOUGH
    return Verdict(state, over, queries, needed)


def _at_most(over: int, queries: int, percentile: float) -> float:
    """Return the probability that so many or fewer are over the limit."""
    from scipy.special import bdtr

    return float(bdtr(over, queries, 1 - percentile))
