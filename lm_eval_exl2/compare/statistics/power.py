"""What a number of documents can show: the chance that a lossless candidate is certified.

Lossless: as many documents gained as lost, at a given flip rate. Certified: the upper bound of the
drop is below the margin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError, check_alpha
from lm_eval_exl2.compare.statistics.score import score_statistics

Array = NDArray[np.float64]
_MANY_FLIPS = 2000
_UNLIKELY = 1e-9
_MOST_DOCUMENTS = 10**8


def certification_power(
    documents: int, flip_rate: float, margin: float, alpha: float = 0.05
) -> float:
    """Return the probability that a candidate without any loss has its upper bound below `margin`.

    Exact, summing over numbers of lost and gained documents, up to 2000 expected flips; by the
    normal distribution beyond (they agree to .002 there).

    Args:
        documents: how many there are.
        flip_rate: share of documents on which one run is right and the other wrong.
        margin: absolute drop, a fraction. A relative margin times the baseline's score serves:
            what the baseline's own noise adds is of the order of margin^2.
        alpha: one-sided error rate of the bound.
    """
    check_alpha(alpha)
    if documents < 1 or not 0 <= flip_rate <= 1 or not 0 < margin < 1:
        raise StatisticsError(
            f"found {documents} documents, flip rate {flip_rate} and margin {margin}, expected at "
            "least one document and shares between 0 and 1"
        )
    if documents * flip_rate > _MANY_FLIPS:
        return bound_power(margin, math.sqrt(flip_rate / documents), alpha)
    lost, gained, probability = likely_flips(documents, flip_rate / 2, flip_rate / 2)
    cells = (documents - lost - gained, lost, gained, np.zeros_like(lost))
    statistic = score_statistics(cells, np.full_like(lost, margin), relative=False)
    # What `drop_bounds(...).upper < margin` comes to, without finding the bound.
    unseen = (1 - margin) ** documents
    certified = np.where(lost + gained == 0, unseen < alpha, statistic > stats.norm.isf(alpha))
    return float(probability[certified].sum())


def bound_power(margin: float, standard_error: float, alpha: float = 0.05) -> float:
    """Return the same for any drop of known standard error, such as an average (normal)."""
    check_alpha(alpha)
    if standard_error <= 0:
        raise StatisticsError(f"the standard error is {standard_error}, expected a positive number")
    return float(stats.norm.cdf(margin / standard_error - stats.norm.isf(alpha)))


def documents_needed(
    flip_rate: float, margin: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return how many documents certify a lossless candidate with probability `power`.

    The number returned reaches it. Power rises with small steps back, since flips are whole, so one
    a little smaller may reach it, too.
    """
    if not 0 < power < 1:
        raise StatisticsError(f"the power is {power}, expected a probability below 1")
    fewest = 1
    while certification_power(fewest, flip_rate, margin, alpha) < power:
        fewest *= 2
        if fewest > _MOST_DOCUMENTS:
            raise StatisticsError(f"more than {_MOST_DOCUMENTS} documents would be needed")
    too_few = fewest // 2
    while fewest - too_few > 1:
        middle = (fewest + too_few) // 2
        if certification_power(middle, flip_rate, margin, alpha) < power:
            too_few = middle
        else:
            fewest = middle
    return fewest


def documents_to_settle(documents: float, drop: float, bounds: Bounds, worst: float) -> float:
    """Return about how many documents in all leave `worst` outside the bounds, at the same drop.

    Distances to the bounds shrink with the square root of the number of documents. Even then chance
    decides: with this many, about half of all samples settle it. Infinite if drop equals `worst`.

    Args:
        documents: how many there are now.
        drop: the estimate.
        bounds: its bounds now.
        worst: the worst drop that is accepted, in the same unit.
    """
    room = abs(worst - drop)
    away = bounds.upper - drop if drop < worst else drop - bounds.lower
    if room == 0 or not math.isfinite(away):
        return math.inf
    return max(documents * (away / room) ** 2, documents)


def likely_flips(documents: int, lost: float, gained: float) -> tuple[Array, Array, Array]:
    """Return numbers of lost and gained documents, and the probability of each pair.

    Pairs in the outermost 1e-9 of either number are left out.

    Args:
        documents: how many there are.
        lost: probability that a document is lost.
        gained: probability that it is gained.
    """
    lost_D, gained_D = (_likely(documents, rate) for rate in (lost, gained))
    both = np.meshgrid(lost_D, gained_D, indexing="ij")
    x, y = (axis.ravel() for axis in both)
    fits = x + y <= documents
    x, y = x[fits], y[fits]
    rest = documents - x - y
    log_probability = (
        special.gammaln(documents + 1)
        - special.gammaln(x + 1) - special.gammaln(y + 1) - special.gammaln(rest + 1)
        + special.xlogy(x, lost) + special.xlogy(y, gained)
        + special.xlogy(rest, max(1 - lost - gained, 0.0))
    )  # fmt: skip
    return x, y, np.exp(log_probability)


def _likely(documents: int, rate: float) -> Array:
    low = float(stats.binom.ppf(_UNLIKELY / 2, documents, rate)) if rate > 0 else 0.0
    high = float(stats.binom.isf(_UNLIKELY / 2, documents, rate)) if rate > 0 else 0.0
    return np.arange(max(low, 0.0), high + 1)
