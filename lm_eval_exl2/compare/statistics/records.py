"""What the statistics hand out, and their one error.

Throughout this package a *drop* is baseline minus candidate, positive where the candidate is worse
(negate values whose metric is better when lower). A *relative* drop is divided by the baseline's
score. `alpha` belongs to one side: bounds at 0.05 are both ends of a 90 % interval.
"""

from __future__ import annotations

from typing import NamedTuple

from lm_eval_exl2.errors import Exl2EvalError


class StatisticsError(Exl2EvalError, ValueError):
    """Numbers from which the statistic asked for cannot be computed."""


class Bounds(NamedTuple):
    """A lower and an upper bound, each at its own one-sided level; infinite if there is none."""

    lower: float
    upper: float


def wider(*bounds: Bounds) -> Bounds:
    """Return the bounds that contain all of the given ones: on each side the worse counts."""
    return Bounds(min(b.lower for b in bounds), max(b.upper for b in bounds))


def check_alpha(alpha: float) -> None:
    """Raise StatisticsError unless `alpha` is a one-sided error rate in (0, 0.5)."""
    if not 0 < alpha < 0.5:
        raise StatisticsError(f"alpha is {alpha}, expected a one-sided level between 0 and 0.5")
