"""Right or wrong, twice, on the same documents: four counts, and tests of the flips alone.

How large a drop the counts allow is the business of `score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lm_eval_exl2.compare.statistics.records import StatisticsError


class PairedCounts(NamedTuple):
    """How many documents both, one or neither of two runs got right; fractions if effective."""

    both_right: float
    lost: float
    """Baseline right, candidate wrong."""
    gained: float
    """Baseline wrong, candidate right."""
    both_wrong: float

    @property
    def documents(self) -> float:
        """How many documents there are."""
        return sum(self)

    @property
    def discordant(self) -> float:
        """On how many documents one run is right and the other is wrong."""
        return self.lost + self.gained

    @property
    def baseline(self) -> float:
        """The baseline's score."""
        return (self.both_right + self.lost) / self.documents

    @property
    def candidate(self) -> float:
        """The candidate's score."""
        return (self.both_right + self.gained) / self.documents

    @property
    def drop(self) -> float:
        """Baseline's score minus candidate's."""
        return (self.lost - self.gained) / self.documents

    def swapped(self) -> PairedCounts:
        """Return the counts with baseline and candidate exchanged."""
        return PairedCounts(self.both_right, self.gained, self.lost, self.both_wrong)


class McNemar(NamedTuple):
    """Two-sided p-values of "as many documents were lost as gained"."""

    exact: float
    mid_p: float
    smallest: float
    """The exact p-value if all flips went one way: above .05 with fewer than 6 of them."""


def paired_counts(baseline: ArrayLike, candidate: ArrayLike) -> PairedCounts:
    """Count documents by who got them right; both hold one 0 or 1 per document, in one order.

    Raises:
        StatisticsError: lengths differ, there is no document, or a value is neither 0 nor 1.
    """
    b, c = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
    if b.shape != c.shape or b.ndim != 1 or b.size == 0:
        raise StatisticsError(
            f"found scores of shapes {b.shape} and {c.shape}, expected two lists of the same "
            "documents, at least one: pair them first"
        )
    if not np.isin(np.concatenate([b, c]), (0.0, 1.0)).all():
        raise StatisticsError("found a score other than 0 and 1: use the statistics of values")
    right, both = (b == 1), (b == c)
    cells = (right & both, right & ~both, ~right & ~both, ~right & both)
    return PairedCounts(*(int(cell.sum()) for cell in cells))


def check_counts(counts: PairedCounts) -> None:
    """Raise StatisticsError unless all counts are finite, not negative and not all zero."""
    if not all(0 <= count < np.inf for count in counts) or counts.documents == 0:
        raise StatisticsError(f"found {counts}, expected counts of at least one document")


def mcnemar(counts: PairedCounts) -> McNemar:
    """Test lost against gained documents by the binomial distribution.

    Exact: McNemar (1947) conditional on the discordant pairs. Mid-p: half the probability of what
    was observed counts, which Fagerland, Lydersen and Laake (2013) advise (less conservative).
    """
    check_counts(counts)
    fewer, flips = min(counts.lost, counts.gained), counts.discordant
    if flips != int(flips) or fewer != int(fewer):
        raise StatisticsError(f"found {counts}, but McNemar's test needs whole documents")
    at_most = 2 * float(stats.binom.cdf(fewer, flips, 0.5))
    exactly = float(stats.binom.pmf(fewer, flips, 0.5))
    return McNemar(min(at_most, 1.0), min(at_most - exactly, 1.0), min(2 * 0.5**flips, 1.0))


def stratified_counts(
    strata: Sequence[PairedCounts], weights: Sequence[float] | None = None
) -> PairedCounts:
    """Return the counts of as many unstratified documents as give a group's score and precision.

    A group's score is the weighted mean over its strata (subjects of MMLU). The result has the
    group's scores and flip rate; its size is the effective one (Kish 1965), at which the drop's
    variance equals the stratified one, sum of weight^2 x variance / documents.

    Args:
        strata: counts per stratum.
        weights: per stratum, any scale; None weighs by documents, as the harness does for `mmlu`.
    """
    if not strata:
        raise StatisticsError("found a group without strata, expected at least one")
    for counts in strata:
        check_counts(counts)
    cells = np.asarray(strata, np.float64)
    sizes = cells.sum(axis=1)
    share = sizes if weights is None else np.asarray(weights, np.float64)
    if share.shape != sizes.shape or not (share > 0).all():
        raise StatisticsError(f"found weights {weights}, expected one above 0 for each stratum")
    share = share / share.sum()
    rates = (share[:, None] * cells / sizes[:, None]).sum(axis=0)
    return PairedCounts(*(float(rate) for rate in rates * _effective_size(cells, sizes, share)))


def _effective_size(cells: np.ndarray, sizes: np.ndarray, share: np.ndarray) -> float:
    """Return how many documents of a simple sample give the stratified drop's variance."""
    rates = cells / sizes[:, None]
    flips, drops = rates[:, 1] + rates[:, 2], rates[:, 1] - rates[:, 2]
    # A single document shows no variance of its own; its flip rate is an upper limit.
    of_one = np.where(sizes > 1, flips - drops**2, flips)
    variance = float((share**2 * of_one / np.maximum(sizes - 1, 1)).sum())
    simple = float(share @ flips - (share @ drops) ** 2)
    # Without flips nothing is rarer than what the documents that weigh most may hide.
    return simple / variance if min(simple, variance) > 0 else float((sizes / share).min())
