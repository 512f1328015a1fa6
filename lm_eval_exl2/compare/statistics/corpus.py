"""The drop of a score that is a function of sums over documents (BLEU, F1), by bootstrap.

Documents are drawn again with both runs' values (a paired bootstrap, Koehn 2004), and the score is
taken of each draw's sums; the bounds are bias-corrected and accelerated (Efron 1987).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError, check_alpha

Array = NDArray[np.float64]
RESAMPLES = 1999
_SEED = 20260101


def corpus_drop(
    baseline: Array,
    candidate: Array,
    score: Callable[[Array], float],
    alpha: float = 0.05,
    *,
    relative: bool = False,
) -> Bounds:
    """Return one-sided bounds of the drop of a corpus score.

    Where no draw differs from another (equal runs, a single document), nothing is known and the
    bounds are infinite: a score of any form gives no bound for what was never seen.

    Args:
        baseline: what is summed, documents by statistics.
        candidate: the candidate's, the same documents in the same order.
        score: from documents by statistics to their score.
        alpha: error rate of each bound.
        relative: divide the drop by the baseline's score, which must be positive.

    Raises:
        StatisticsError: shapes differ or there is no document.
    """
    check_alpha(alpha)
    if len(baseline) != len(candidate) or not len(baseline):
        raise StatisticsError(
            f"found {len(baseline)} and {len(candidate)} documents, expected as many, at least one"
        )

    def drop(documents: NDArray[np.int64]) -> float:
        before = score(baseline[documents])
        away = before - score(candidate[documents])
        if not relative:
            return away
        return away / before if before > 0 else np.inf

    if len(baseline) < 2:
        return Bounds(-np.inf, np.inf)
    with warnings.catch_warnings():
        # Draws without any spread give no interval.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Any = stats.bootstrap(  # scipy's result has no types
            (np.arange(len(baseline)),),
            drop,
            vectorized=False,
            confidence_level=1 - 2 * alpha,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    ends = float(found.low), float(found.high)
    return Bounds(*ends) if np.isfinite(ends).all() else Bounds(-np.inf, np.inf)
