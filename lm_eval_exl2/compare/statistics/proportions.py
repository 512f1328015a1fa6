"""Intervals of a single share: a score (Wilson), a rate that may be tiny (Clopper-Pearson).

Several p-values at once: Holm. All three say nothing about two runs on the same documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError


def wilson_interval(successes: float, documents: float, confidence: float = 0.95) -> Bounds:
    """Return the two-sided score interval of a share (Wilson 1927); counts may have parts."""
    _check(successes, documents, confidence)
    z = float(stats.norm.isf((1 - confidence) / 2))
    share, spread = successes / documents, z * z / documents
    middle = share + spread / 2
    half = float(np.sqrt(spread * (share * (1 - share) + spread / 4)))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # Rounding must not leave 1e-17 where the bound is exactly 0 or 1.
    return Bounds(
        low if successes > 0 else 0.0,
        high if successes < documents else 1.0,
    )


def clopper_pearson_interval(
    successes: float, documents: float, confidence: float = 0.95
) -> Bounds:
    """Return the exact two-sided interval of a share (Clopper and Pearson 1934)."""
    _check(successes, documents, confidence)
    tail, rest = (1 - confidence) / 2, documents - successes
    low = float(stats.beta.ppf(tail, successes, rest + 1)) if successes > 0 else 0.0
    high = float(stats.beta.isf(tail, successes + 1, rest)) if rest > 0 else 1.0
    return Bounds(low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values in the given order (Holm 1979).

    Comparing them with .05 keeps the chance of one or more false statements at 5 %.
    """
    values = np.asarray(p_values, np.float64)
    if values.size and not ((values >= 0) & (values <= 1)).all():
        raise StatisticsError(f"found p-values {list(p_values)}, expected numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values), 0, -1) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if values.size else steps
    return [float(value) for value in adjusted]


def _check(successes: float, documents: float, confidence: float) -> None:
    if not 0 <= successes <= documents or documents <= 0:
        raise StatisticsError(
            f"found {successes} of {documents}, expected a count out of at least one document"
        )
    if not 0 < confidence < 1:
        raise StatisticsError(f"the confidence is {confidence}, expected a share such as 0.95")
