"""Means of two runs' values on the same documents, and the covariance matrix of these means.

Documents that share a passage are not independent: with `clusters`, variances are cluster-robust
and have (clusters - 1) degrees of freedom.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lm_eval_exl2.compare.statistics.records import StatisticsError

Array = NDArray[np.float64]
# What adding up in another order does to a difference that is the same for all documents.
_ROUNDING = 1e-12


class PairedMoments(NamedTuple):
    """Two means over the same documents and how precisely they are known."""

    baseline: float
    candidate: float
    baseline_variance: float
    """Of the baseline's mean."""
    drop_variance: float
    """Of the mean drop, baseline minus candidate."""
    covariance: float
    """Of the mean drop with the baseline's mean."""
    units: int
    """Independent units: documents, or clusters of them."""
    span: float
    """The most one document's value can change (1 for shares); infinite if there is no limit."""

    @property
    def drop(self) -> float:
        """Baseline's mean minus candidate's."""
        return self.baseline - self.candidate

    def deviation(self, alpha: float) -> float:
        """Return how far the mean drop's one-sided bound lies from it.

        Student's t with units - 1 degrees of freedom. If the drop is the same in all units, its
        variance says nothing; span x (1 - alpha^(1/units)) is what may differ unseen.
        """
        if self.drop_variance > 0:
            return self.quantile(alpha) * float(np.sqrt(self.drop_variance))
        return self.span * (1 - alpha ** (1 / self.units))

    def quantile(self, alpha: float) -> float:
        """Return the one-sided quantile of Student's t; infinite for a single unit."""
        return float(stats.t.isf(alpha, self.units - 1)) if self.units > 1 else np.inf


class Units(NamedTuple):
    """Sums over each independent unit, document or cluster."""

    drops: Array
    baselines: Array
    sizes: Array


def sum_by_unit(baseline: ArrayLike, candidate: ArrayLike, clusters: ArrayLike | None) -> Units:
    """Return sums of drops and of baseline values, and numbers of documents, of each unit.

    Raises:
        StatisticsError: lengths differ, there is no document, or a value is not finite.
    """
    b, c = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
    if b.shape != c.shape or b.ndim != 1 or b.size == 0:
        raise StatisticsError(
            f"found values of shapes {b.shape} and {c.shape}, expected two lists of the same "
            "documents, at least one: pair them first"
        )
    if not np.isfinite(b).all() or not np.isfinite(c).all():
        raise StatisticsError("found a value that is not finite: leave such documents out, by name")
    if clusters is None:
        return Units(b - c, b, np.ones_like(b))
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    if place.shape != b.shape:
        raise StatisticsError(f"found {place.size} cluster names for {b.size} documents")
    drops, baselines, sizes = (
        np.bincount(place, weights, len(names)).astype(np.float64)
        for weights in (b - c, b, np.ones_like(b))
    )
    return Units(drops, baselines, sizes)


def paired_moments(
    baseline: ArrayLike,
    candidate: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    span: float = np.inf,
) -> PairedMoments:
    """Return means, variances and covariance of two runs' values, one pair per document.

    The variance of a mean is G/(G-1) times the sum over G units of squared summed residuals, over
    the squared number of documents (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640); with one
    document per unit that is the usual one.

    Args:
        baseline: the baseline's values.
        candidate: the candidate's, in the same order.
        clusters: what each document belongs to; None if documents are independent.
        span: see PairedMoments.

    Raises:
        StatisticsError: see `sum_by_unit`.
    """
    return moments_of_units(sum_by_unit(baseline, candidate, clusters), span)


def moments_of_units(units: Units, span: float) -> PairedMoments:
    """Return `paired_moments` of what was summed by unit."""
    documents, count = float(units.sizes.sum()), len(units.sizes)
    drop, baseline = units.drops.sum() / documents, units.baselines.sum() / documents
    residuals = np.stack(
        [units.drops - drop * units.sizes, units.baselines - baseline * units.sizes]
    )
    if np.abs(residuals[0]).max() <= _ROUNDING * max(1.0, float(np.abs(units.baselines).max())):
        residuals[0] = 0
    spread = residuals @ residuals.T * (count / max(count - 1, 1)) / documents**2
    return PairedMoments(
        baseline=float(baseline),
        candidate=float(baseline - drop),
        baseline_variance=float(spread[1, 1]),
        drop_variance=float(spread[0, 0]),
        covariance=float(spread[0, 1]),
        units=count,
        span=span,
    )
