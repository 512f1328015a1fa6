"""The ratio of two perplexities over the same windows or documents, with an interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lm_eval_exl2.compare.statistics.neighbours import sum_of_windows
from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError, check_alpha


class PerplexityRatio(NamedTuple):
    """Candidate's perplexity over the baseline's: above 1 the candidate is worse."""

    ratio: float
    bounds: Bounds
    baseline: float
    candidate: float


def perplexity_ratio(
    baseline_losses: ArrayLike,
    candidate_losses: ArrayLike,
    counts: ArrayLike,
    *,
    candidate_counts: ArrayLike | None = None,
    starts: ArrayLike | None = None,
    alpha: float = 0.05,
) -> PerplexityRatio:
    """Compare perplexities, exp(sum of losses / sum of counts), by the same windows.

    The log-ratio's variance is that of the windows' residuals (delta method for a difference of two
    ratios of sums), its quantile Student's t with windows - 1 degrees of freedom. Windows of one
    text correlate; with `starts` `sum_of_windows` counts that. If all windows agree exactly, or
    there is one, nothing bounds the ratio: (0, infinity).

    Args:
        baseline_losses: negative log-likelihood per window, nats.
        candidate_losses: the same of the candidate.
        counts: what each window's loss is divided by: targets, words or bytes.
        starts: each window's first token in the text; None takes documents as independent.
        candidate_counts: the candidate's, if they differ (another tokenizer).
        alpha: one-sided error rate of each bound; .025 for a 95 % interval.

    Raises:
        StatisticsError: lengths differ, a number is not finite, or nothing was counted.
    """
    check_alpha(alpha)
    given = (
        baseline_losses,
        candidate_losses,
        counts,
        counts if candidate_counts is None else candidate_counts,
    )
    b, c, m, k = (np.asarray(values, np.float64) for values in given)
    if not (b.shape == c.shape == m.shape == k.shape) or b.ndim != 1 or b.size == 0:
        raise StatisticsError("found lists of different lengths or none, expected one per window")
    if (
        not all(np.isfinite(values).all() for values in (b, c, m, k))
        or m.sum() <= 0
        or k.sum() <= 0
    ):
        raise StatisticsError("found losses that are not finite or counts that sum to 0")
    before, after = b.sum() / m.sum(), c.sum() / k.sum()
    residuals = (c - after * k) / k.sum() - (b - before * m) / m.sum()
    away = np.inf
    if b.size > 1 and np.abs(residuals).max() > 1e-15:
        variance, degrees = b.size / (b.size - 1) * (residuals**2).sum(), b.size - 1
        if starts is not None:
            variance, degrees = sum_of_windows(residuals, starts)
        away = float(stats.t.isf(alpha, degrees) * np.sqrt(variance))
    log_ratio = float(after - before)
    with np.errstate(over="ignore"):
        low, ratio, high, first, last = np.exp(
            [log_ratio - away, log_ratio, log_ratio + away, float(before), float(after)]
        ).tolist()
    return PerplexityRatio(ratio, Bounds(low, high), first, last)
