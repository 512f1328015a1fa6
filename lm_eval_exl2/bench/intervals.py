"""How sure the ratio of two means is: a bootstrap interval over documents. Pure.

Documents are drawn with replacement, each with both of its values, so what makes a document hard
for both runs cancels. The interval is printed beside an estimate; nothing is decided by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES: Final = 4999
_SEED: Final = 20260101
_BATCH_ELEMENTS: Final = 1 << 22


class RatioInterval(NamedTuple):
    """Ends of a two-sided 95 % interval."""

    lower: float
    upper: float


def ratio_interval(candidate: Floats, baseline: Floats) -> RatioInterval | None:
    """Bootstrap mean(candidate) / mean(baseline) over paired documents: percentile interval.

    Args:
        candidate: One value per document.
        baseline: The same documents in the same order; nowhere negative. A fixed number repeated
            gives the interval of the candidate alone.

    Returns:
        None for fewer than two documents, or where resamples have a baseline of 0.
    """
    if len(candidate) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Any = stats.bootstrap(  # scipy's result has no types
            (candidate, baseline),
            _ratio,
            paired=True,
            vectorized=True,
            method="percentile",
            confidence_level=0.95,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH_ELEMENTS // len(candidate)),
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    ends = RatioInterval(float(found.low), float(found.high))
    return ends if np.isfinite(ends).all() else None


def _ratio(candidate: Floats, baseline: Floats, axis: int = -1) -> Floats:
    return candidate.sum(axis=axis) / baseline.sum(axis=axis)
