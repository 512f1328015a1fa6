"""The drop of a metric that is not 0/1 (mc2, log-loss per document), with bounds.

Paired t for the mean, Fieller's interval for the relative drop. The error rate of t bounds is off
by about 0.11 x skewness / sqrt(n) (Johnson 1978). Where that exceeds half a point, and where there
are fewer than 40 clusters, a bootstrap is run as well and on each side the wider bound counts.
That is not enough for extreme skewness in few documents: with that of a log-normal (6) and 50 of
them, the bound at 5 % errs in 9 to 10 % of samples (results/statistics.json; Johnson's correction
and the studentized bootstrap do no better). `method` then says so.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lm_eval_exl2.compare.statistics.average import average_drop
from lm_eval_exl2.compare.statistics.moments import (
    PairedMoments,
    Units,
    moments_of_units,
    sum_by_unit,
)
from lm_eval_exl2.compare.statistics.records import Bounds, check_alpha, wider

Array = NDArray[np.float64]
SKEWED = 0.05
"""|skewness| / sqrt(n) from which the bootstrap joins in."""
TOO_SKEWED = 0.35
"""|skewness| / sqrt(n) from which even that may be too narrow."""
FEW_CLUSTERS = 40
RESAMPLES = 4999
_SEED = 20260101
_BATCH_ELEMENTS = 1 << 22


class MeanDrop(NamedTuple):
    """The drop of a mean, absolute or relative, with bounds at the level asked for."""

    drop: float
    bounds: Bounds
    method: str
    """What the bounds come from, in words."""
    design_effect: float
    """Variance of the drop with clusters over that without; 1 if there are none."""


def mean_drop(
    baseline: ArrayLike,
    candidate: ArrayLike,
    alpha: float = 0.05,
    *,
    clusters: ArrayLike | None = None,
    span: float = np.inf,
    relative: bool = False,
) -> MeanDrop:
    """Return the drop of the mean of paired values, with one-sided bounds.

    With `clusters`, the wider of the bounds with and without them counts on each side.

    Args:
        baseline: the baseline's value per document.
        candidate: the candidate's, in the same order.
        alpha: error rate of each bound.
        clusters: what each document belongs to (its passage); None if documents are independent.
        span: the most one document's value can change; needed for bounds where all drops are equal.
        relative: divide the drop by the baseline's mean, which must be positive.

    Raises:
        StatisticsError: lengths differ, a value is not finite, or the baseline's mean is not
            positive (relative).
    """
    check_alpha(alpha)
    simple = sum_by_unit(baseline, candidate, None)
    found = _bounds(simple, alpha, span, relative)
    moments = moments_of_units(simple, span)
    drop = average_drop([moments]).relative if relative else moments.drop
    if clusters is None:
        return MeanDrop(drop, found.bounds, found.method, 1.0)
    grouped = sum_by_unit(baseline, candidate, clusters)
    robust = _bounds(grouped, alpha, span, relative, few=len(grouped.sizes) < FEW_CLUSTERS)
    variance = moments_of_units(grouped, span).drop_variance
    effect = variance / moments.drop_variance if moments.drop_variance > 0 else 1.0
    method = f"{robust.method}, over {len(grouped.sizes)} clusters; at least: {found.method}"
    return MeanDrop(drop, wider(found.bounds, robust.bounds), method, effect)


class _Found(NamedTuple):
    bounds: Bounds
    method: str


def _bounds(
    units: Units, alpha: float, span: float, relative: bool, *, few: bool = False
) -> _Found:
    """Return t bounds, widened by the bootstrap where units are few or skewed."""
    moments = moments_of_units(units, span)
    bounds = _t_bounds(moments, alpha, relative)
    name = "Fieller" if relative else "paired t"
    if moments.drop_variance == 0:
        return _Found(bounds, f"{name}, zero events")
    skewness = _skewness(units, relative)
    if len(units.sizes) < 3 or not (few or skewness > SKEWED):
        return _Found(bounds, name)
    name += " and BCa" + (" (too skewed for so few documents)" if skewness > TOO_SKEWED else "")
    return _Found(wider(bounds, _bootstrap(units, alpha, relative, bounds)), name)


def _t_bounds(moments: PairedMoments, alpha: float, relative: bool) -> Bounds:
    if relative:
        return average_drop([moments], alpha).relative_bounds
    away = moments.deviation(alpha)
    return Bounds(moments.drop - away, moments.drop + away)


def _skewness(units: Units, relative: bool) -> float:
    """Return |skewness| / sqrt(n) of what the mean is taken of."""
    over = units.baselines if relative else units.sizes
    residuals = units.drops - units.drops.sum() / over.sum() * over
    return abs(float(stats.skew(residuals))) / len(residuals) ** 0.5


def _bootstrap(units: Units, alpha: float, relative: bool, otherwise: Bounds) -> Bounds:
    """Return bias-corrected and accelerated bounds (Efron 1987) over resampled units."""
    over = units.baselines if relative else units.sizes

    def ratio(drops: Array, denominators: Array, axis: int = -1) -> Array:
        return drops.sum(axis=axis) / denominators.sum(axis=axis)

    with warnings.catch_warnings():
        # Samples without any spread give no interval; the t bounds stand for it.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found: Any = stats.bootstrap(  # scipy's result has no types
            (units.drops, over),
            ratio,
            paired=True,
            vectorized=True,
            confidence_level=1 - 2 * alpha,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH_ELEMENTS // len(over)),
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return Bounds(low, high) if np.isfinite([low, high]).all() else otherwise
