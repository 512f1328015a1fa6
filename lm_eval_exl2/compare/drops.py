"""Drops as reports have them, and everything that one unit's values say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.results import Bounds, Interval
from lm_eval_exl2.compare.statistics import PairedCounts, PairedMoments
from lm_eval_exl2.compare.units import Unit

TWO_SIDED, ONE_SIDED = 0.025, 0.05
"""Levels of each bound: of 95 % intervals, and of the verdict's L and U."""


class Scores(NamedTuple):
    """What a unit's values say."""

    baseline: Interval
    candidate: Interval
    difference: Interval
    relative: Bounds | None
    """In per cent of the baseline's score; None where it has no relative drop."""
    absolute: Bounds | None
    """In percentage points."""
    statistic: PairedCounts | PairedMoments | None
    """For averages and tests; None for perplexities and corpus metrics."""
    design_effect: float | None


class Drop(NamedTuple):
    """A drop as a fraction, with bounds for the interval and for the verdict."""

    interval: statistics.Bounds
    bounds: statistics.Bounds
    relative: statistics.Bounds | None
    method: str


def scaled(estimate: float, ends: statistics.Bounds, factor: float, method: str) -> Bounds:
    """As the records have them: in per cent or points, infinite bounds as None."""
    low, high = sorted(factor * end for end in ends)
    lower, upper = (float(end) if np.isfinite(end) else None for end in (low, high))
    return Bounds(factor * estimate, lower, upper, method)


def points(unit: Unit, estimate: float, drop: Drop) -> Bounds:
    """A drop in percentage points, where scores are shares; positive: the candidate is worse."""
    sign = 1 if unit.higher_is_better else -1
    return scaled(estimate, drop.bounds, sign * 100, drop.method)


def interval_of(estimate: float, drop: statistics.Bounds, method: str) -> Interval:
    """Of the difference, from the drop's; infinite ends as None."""
    lower, upper = (float(-end) if np.isfinite(end) else None for end in (drop.upper, drop.lower))
    return Interval(estimate, lower, upper, method)
