"""The score interval of a sum of drops over several tasks with 0/1 metrics: Tango's, for many.

Under "the drops sum to S" the most likely probabilities of all tasks share one Lagrange multiplier
t: in each, count / (v + a t) with a = 1, 0, -1 for gained, concordant and lost documents, v such
that they sum to 1. A task's drop D then satisfies n (D - estimate) / variance = t, hence the score
statistic is t x sqrt(sum of variances) and the bound of the sum lies where that is the quantile z:
at estimate + z sqrt(sum of variances). For one task this is the interval of Tango (1998); with
several it is the score interval of a product of multinomials.

It needs no task to have flips: where S cannot be explained by tasks with many, it is by the task
that could hide it, whose variance then is not 0. As for one task, the bound is at least the
zero-event one, 1 - alpha^(1/n), of any single task without flips.

Arrays end with _TS: tasks by samples (one sample, or many to be judged at once).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
_HALVINGS = 45
_NEWTON_STEPS = 14


class Deviations(NamedTuple):
    """How far the bounds of the sum of drops lie below and above the estimate, per sample."""

    below: Array
    above: Array


def joint_deviations(
    lost_TS: Array, gained_TS: Array, documents_TS: Array, others: Array, alpha: float
) -> Deviations:
    """Return the distances from the estimated sum of drops to its one-sided bounds.

    Args:
        lost_TS: documents that only the baseline got right.
        gained_TS: documents that only the candidate got right.
        documents_TS: all documents.
        others: variance per sample of what else is in the sum and does not depend on it.
        alpha: one-sided error rate of each bound.
    """
    z = float(stats.norm.isf(alpha))
    if lost_TS.shape[0] == 0:
        return Deviations(z * np.sqrt(others), z * np.sqrt(others))
    none = lost_TS + gained_TS == 0
    unseen = np.where(none, 1 - alpha ** (1 / documents_TS), 0).max(axis=0)
    floor = np.where(unseen > 0, np.sqrt(unseen**2 + z**2 * others), 0)
    above = _deviation(lost_TS, gained_TS, documents_TS, others, z)
    below = _deviation(gained_TS, lost_TS, documents_TS, others, z)
    # Without a single flip there is nothing else to go by.
    nothing = none.all(axis=0)
    return Deviations(
        np.where(nothing, floor, np.maximum(below, floor)),
        np.where(nothing, floor, np.maximum(above, floor)),
    )


def _deviation(
    rising_TS: Array, falling_TS: Array, documents_TS: Array, others: Array, z: float
) -> Array:
    """Find the multiplier at which the statistic is z; the smallest task alone limits it."""
    low: Array = np.zeros(rising_TS.shape[1:])
    high: Array = documents_TS.min(axis=0) + z * z
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        variance = _variances(rising_TS, falling_TS, documents_TS, middle).sum(axis=0) + others
        beyond = middle * np.sqrt(variance) > z
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return z * np.sqrt(_variances(rising_TS, falling_TS, documents_TS, high).sum(axis=0) + others)


def _variances(rising_TS: Array, falling_TS: Array, documents_TS: Array, t: Array) -> Array:
    """Return each task's variance of the mean at multiplier t >= 0, rising documents more likely.

    v is found by Newton's method from below, which cannot overshoot: v >= t + rising and
    v >= n - t, and the sum of probabilities falls and is convex in v. Without rising documents the
    sum may be below 1 at the start already; they then have the missing probability.
    """
    same_TS = documents_TS - rising_TS - falling_TS
    v = np.maximum(t + rising_TS, documents_TS - t)
    some = rising_TS > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_NEWTON_STEPS):
            up = np.where(some, rising_TS / (v - t), 0)
            down, stay = falling_TS / (v + t), same_TS / v
            slope = np.where(some, up / (v - t), 0) + down / (v + t) + stay / v
            v = v + np.maximum(up + down + stay - 1, 0) / slope
    down, stay = falling_TS / (v + t), same_TS / v
    up = np.maximum(1 - down - stay, 0)
    return (up + down - (up - down) ** 2) / documents_TS
