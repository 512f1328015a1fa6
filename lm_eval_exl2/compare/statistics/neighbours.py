"""The variance of a sum over windows of one text, whose neighbours are about the same things."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

REACH = 16_384
"""Tokens within which windows are taken to correlate: about three articles of WikiText-2."""


class SumOfWindows(NamedTuple):
    """How far a sum may be off."""

    variance: float
    degrees: float
    """Degrees of freedom that the variance has."""


def sum_of_windows(residuals: ArrayLike, starts: ArrayLike) -> SumOfWindows:
    """Return the variance of the sum of residuals that have mean 0.

    Covariances up to `REACH` tokens apart, but no further than a quarter of the windows, are added
    with falling weights (Bartlett's, Newey and West 1987). Never less than of independent windows.
    Falling weights miss a little: where 600 windows are 50 articles, 95 % intervals hold the truth
    91 times in 100 (51 times with windows taken as independent).
    Such a variance has 3 n / (2 m) degrees of freedom, m where the weights end (Priestley 1981,
    chapter 6, at frequency 0).

    Args:
        residuals: one per window, at least two.
        starts: the windows' first tokens, in any order.
    """
    places = np.asarray(starts, np.float64)
    order = np.argsort(places, kind="stable")
    r = np.asarray(residuals, np.float64)[order]
    windows = r.size
    own = float((r**2).sum()) * windows / (windows - 1)
    stride = max(float(np.ptp(places)) / (windows - 1), 1.0)
    end = min(int(REACH / stride), windows // 4) + 1
    near = sum((1 - apart / end) * float(r[apart:] @ r[:-apart]) for apart in range(1, end))
    return SumOfWindows(max(own, own + 2 * near), min(windows - 1, 1.5 * windows / end))
