"""Score tests and bounds of the drop of a 0/1 metric on the same documents.

Both questions, "has the score fallen by D" and "has it fallen by the share r of the baseline's",
are whether a contrast has mean zero: c - b + D, or c - (1 - r) b. It takes three values besides
zero, so the cells' most likely probabilities under the hypothesis solve a quadratic equation. The
statistic is the contrast's sum over its standard deviation at those probabilities.

- Absolute: the score interval of Tango (1998, Statistics in Medicine 17:891).
- Relative: that of the ratio of paired proportions of Tang, Tang and Chan (2003, Statistics in
  Medicine 22:1217), Nam and Blackwelder (2002, ibid. 21:689), with ratio 1 - r.
- No discordant pair at all: the score variance trusts that zero too much (a loss of 2.7 / n would
  be ruled out at 5 % although it goes unseen in 6.7 % of samples). The bound is the exact one of
  zero events, 1 - alpha^(1/n), n being the baseline's right documents for the relative drop.

How often they cover: benchmarks/check_statistics.py. Bounds by the variance at the estimate (Wald)
have no width without flips, which is when a bad candidate is called good most easily.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_exl2.compare.statistics.counts import PairedCounts, check_counts
from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError, check_alpha

Array = NDArray[np.float64]
Cells = tuple[Array, Array, Array, Array]
"""Both right, lost, gained, both wrong: one table each, or arrays of one shape for many."""
_HALVINGS = 52


class ScoreTest(NamedTuple):
    """A score test of "the drop is exactly the margin", and its one-sided p-values."""

    statistic: float
    below: float
    """Against "the drop is at least the margin": non-inferiority when small."""
    above: float
    """Against "the drop is at most the margin": worse by more than it when small."""


def score_test(counts: PairedCounts, margin: float, *, relative: bool = False) -> ScoreTest:
    """Test a drop of `margin`, absolute or as a share of the baseline's score (both as fractions).

    `below < alpha` says the same as `drop_bounds(counts, alpha).upper < margin`.

    Raises:
        StatisticsError: the baseline has nothing right (relative), or no such margin can exist.
    """
    cells = _cells(counts, relative)
    lowest = -np.inf if relative else -1.0
    if not lowest < margin < 1:
        raise StatisticsError(f"the margin is {margin}, expected a fraction: .02 for 2 %")
    statistic = float(score_statistics(cells, np.asarray(margin), relative)[()])
    below, above = float(stats.norm.sf(statistic)), float(stats.norm.cdf(statistic))
    if counts.discordant == 0:
        documents = counts.both_right if relative else counts.documents
        gain = max(-margin, 0.0)
        below = (1 - max(margin, 0.0)) ** documents
        above = (1 + gain) ** -documents if relative else (1 - gain) ** documents
    return ScoreTest(statistic, below, above)


def drop_bounds(counts: PairedCounts, alpha: float = 0.05, *, relative: bool = False) -> Bounds:
    """Return bounds of the drop, each with error rate `alpha`; a fraction, relative if asked."""
    cells = _cells(counts, relative)
    check_alpha(alpha)
    lower, upper = bounds_of_cells(cells, alpha, relative)
    return Bounds(float(lower[()]), float(upper[()]))


def drop_interval(
    counts: PairedCounts, confidence: float = 0.95, *, relative: bool = False
) -> Bounds:
    """Return the two-sided interval of the drop: `drop_bounds` at half the error on each side."""
    return drop_bounds(counts, (1 - confidence) / 2, relative=relative)


def equivalence_p(counts: PairedCounts, margin: float, *, relative: bool = False) -> float:
    """Return the p-value of TOST: small when the drop lies within +-margin.

    Two one-sided tests (Schuirmann 1987). It is below 5 % exactly if the 90 % interval lies within.
    """
    if margin <= 0:
        raise StatisticsError(f"the margin is {margin}, expected a positive fraction")
    return max(
        score_test(counts, margin, relative=relative).below,
        score_test(counts, -margin, relative=relative).above,
    )


def _cells(counts: PairedCounts, relative: bool) -> Cells:
    check_counts(counts)
    if relative and counts.both_right + counts.lost == 0:
        raise StatisticsError("the baseline has no document right: there is no relative drop")
    right, lost, gained, wrong = (np.asarray(count, np.float64) for count in counts)
    return right, lost, gained, wrong


def bounds_of_cells(cells: Cells, alpha: float, relative: bool) -> tuple[Array, Array]:
    """Return lower and upper bounds for many tables at once: arrays of the four counts' shape."""
    right, lost, gained, wrong = cells
    z = float(stats.norm.isf(alpha))
    none = lost + gained == 0
    trials = np.maximum(right if relative else right + wrong, 1)
    zero_event = 1 - alpha ** (1 / trials)
    mirrored = 1 - alpha ** (-1 / trials) if relative else -zero_event
    lower, upper = _where_statistic_is((-z, z), cells, relative)
    return np.where(none, mirrored, lower), np.where(none, zero_event, upper)


def _where_statistic_is(
    wanted: tuple[float, float], cells: Cells, relative: bool
) -> tuple[Array, Array]:
    """Find the drops at which the statistic, which rises with the drop, has the wanted values."""
    goal = np.reshape(wanted, (2, *[1] * cells[0].ndim))
    low = np.zeros((2, *cells[0].shape))
    high = np.ones_like(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_high = score_statistics(cells, _drop_at(middle, relative), relative) > goal
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    found = _drop_at((low + high) / 2, relative)
    return found[0], found[1]


def _drop_at(place: Array, relative: bool) -> Array:
    """Map (0, 1) onto the drops there are: (-1, 1), or (-infinity, 1) for relative ones."""
    return 1 - (1 - place) / place if relative else 2 * place - 1


def score_statistics(cells: Cells, drop: Array, relative: bool) -> Array:
    """Return the score statistic of many tables; positive where fewer were lost than `drop` says.

    Args:
        cells: both right, lost, gained, both wrong; arrays of one shape.
        drop: the hypothesis; the same shape or one that fits it.
        relative: whether `drop` is a share of the baseline's score.
    """
    right, lost, gained, wrong = cells
    if relative:
        return _statistic((gained, right, lost), (np.ones_like(drop), drop, 1 - drop), wrong)
    middle = right + wrong
    return _statistic((gained, middle, lost), (1 + drop, drop, 1 - drop), np.zeros_like(lost))


def _statistic(
    counts: tuple[Array, Array, Array], values: tuple[Array, Array, Array], others: Array
) -> Array:
    """Return sum / (standard deviation under "mean zero") of a variable that takes three values.

    With x, y, z documents of value high > mid > -low and `others` of value 0, the most likely
    probabilities with mean zero are count / (n (1 + t value)), t being the root of a t^2 + b t + c
    with falling slope (Lagrange). Extreme cells follow from the two constraints, which holds for
    empty ones too.
    """
    (x, y, z), (high, mid, low) = counts, values
    n = x + y + z + others
    a = -mid * high * low * (x + y + z)
    b = mid * y * (high - low) + high * x * (mid - low) - low * z * (mid + high)
    total = mid * y + high * x - low * z
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(np.maximum(b * b - 4 * a * total, 0))
        t = np.where(b <= 0, 2 * total / (root - b), -(b + root) / (2 * a))
        p_mid = y / (n * (1 + np.where(np.isfinite(t), t, 0) * mid))
        rest = 1 - others / n - p_mid
        p_high = np.maximum(low * rest - mid * p_mid, 0) / (high + low)
        p_low = np.maximum(high * rest + mid * p_mid, 0) / (high + low)
        variance = high**2 * p_high + mid**2 * p_mid + low**2 * p_low
        return np.where(total == 0, 0.0, total / np.sqrt(n * variance))
