"""How far the unweighted mean of several tasks' scores has fallen, from per-task statistics.

Tasks are independent; within one, both scores come from the same documents. The bounds of the
absolute drop are those of `joint`, to which tasks of values contribute their t variance. For the
relative drop, sum of drops minus r times sum of baseline scores is set to zero within these
distances and solved for r (Fieller 1954); a single task of values thus has Fieller's interval.

Considered and dropped (benchmarks/results/statistics.json has both): at few flips, the plain delta
method calls two to four times as many bad candidates good as it says, and adding up squared
distances to each task's own bounds (MOVER) covers 99 % and more, so that little is ever certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_exl2.compare.statistics.counts import PairedCounts, check_counts
from lm_eval_exl2.compare.statistics.joint import joint_deviations
from lm_eval_exl2.compare.statistics.moments import PairedMoments
from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError, check_alpha
from lm_eval_exl2.compare.statistics.score import Cells

Array = NDArray[np.float64]


class AverageDrop(NamedTuple):
    """Mean scores over tasks and their drop, with bounds at the one-sided level asked for."""

    baseline: float
    candidate: float
    absolute: float
    absolute_bounds: Bounds
    relative: float
    """(baseline - candidate) / baseline."""
    relative_bounds: Bounds


class SumOfTasks(NamedTuple):
    """Sums over tasks; variances times the squared quantile of the level. Arrays: many samples."""

    baseline: Array
    drop: Array
    below: Array
    """Distance from the drop to its lower bound."""
    above: Array
    baseline_variance: Array
    covariance: Array
    """Of the drop with the baseline's score."""


def average_drop(tasks: Sequence[PairedCounts | PairedMoments], alpha: float = 0.05) -> AverageDrop:
    """Return the drop of the unweighted mean of the tasks' scores.

    Args:
        tasks: counts of a 0/1 metric (of a group: `stratified_counts`), moments of another one.
        alpha: one-sided error rate of each bound.

    Raises:
        StatisticsError: there is no task, or the baseline's mean is not positive.
    """
    check_alpha(alpha)
    if not tasks:
        raise StatisticsError("found no task to average, expected at least one")
    counts = [task for task in tasks if isinstance(task, PairedCounts)]
    for count in counts:
        check_counts(count)
    number, baseline = len(tasks), sum(task.baseline for task in tasks) / len(tasks)
    if baseline <= 0:
        raise StatisticsError(
            f"the baseline's mean score is {baseline}: a relative drop needs one above 0"
        )
    others = [task for task in tasks if isinstance(task, PairedMoments)]
    table = np.asarray(counts, np.float64).reshape(-1, 4).T
    total = sum_of_tasks((table[0], table[1], table[2], table[3]), others, alpha)
    drop = float(total.drop) / number
    return AverageDrop(
        baseline=baseline,
        candidate=baseline - drop,
        absolute=drop,
        absolute_bounds=Bounds(
            drop - float(total.below) / number, drop + float(total.above) / number
        ),
        relative=drop / baseline,
        relative_bounds=Bounds(*(float(bound) for bound in relative_bounds(total))),
    )


def sum_of_tasks(cells_TS: Cells, others: Sequence[PairedMoments], alpha: float) -> SumOfTasks:
    """Return the sums over tasks with 0/1 metrics (first axis) and tasks of values."""
    right, lost, gained, wrong = cells_TS
    documents = right + lost + gained + wrong
    squared = float(stats.norm.isf(alpha)) ** 2
    baselines, drops = (right + lost) / documents, (lost - gained) / documents
    spread = np.asarray(sum(task.deviation(alpha) ** 2 for task in others) / squared, np.float64)
    below, above = joint_deviations(lost, gained, documents, spread, alpha)
    return SumOfTasks(
        baseline=baselines.sum(axis=0) + sum(task.baseline for task in others),
        drop=drops.sum(axis=0) + sum(task.drop for task in others),
        below=below,
        above=above,
        baseline_variance=squared * (baselines * (1 - baselines) / documents).sum(axis=0)
        + sum(task.quantile(alpha) ** 2 * task.baseline_variance for task in others),
        covariance=squared * ((lost / documents - drops * baselines) / documents).sum(axis=0)
        + sum(task.quantile(alpha) ** 2 * task.covariance for task in others),
    )


def relative_bounds(total: SumOfTasks) -> tuple[Array, Array]:
    """Return the r with (drop - r baseline)^2 = distance^2 - 2 r covariance + r^2 variance."""
    return _ratio(total, total.below, -1), _ratio(total, total.above, 1)


def _ratio(total: SumOfTasks, distance: Array, side: int) -> Array:
    a = total.baseline**2 - total.baseline_variance
    b = total.baseline * total.drop - total.covariance
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(np.maximum(b * b - a * (total.drop**2 - distance**2), 0))
        # A baseline that may be 0 bounds no ratio.
        return np.where((a > 0) & np.isfinite(distance), (b + side * root) / a, side * np.inf)
