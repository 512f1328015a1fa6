"""How sure the ratio of two means is: a bootstrap interval over documents. Pure.

Documents are drawn with replacement, each with both of its values, so that what makes a document
hard for both runs cancels. The interval is printed beside an estimate; nothing is decided by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES: Final = 2000
_SEED: Final = 20260101
_BATCH_ELEMENTS: Final = 1 << 20


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
        None for fewer than two documents, or where the baseline of a resample is 0.
    """
    documents = len(candidate)
    if documents < 2:
        return None
    rng = np.random.default_rng(_SEED)
    rows = max(1, _BATCH_ELEMENTS // documents)
    sums: list[tuple[Floats, Floats]] = []
    for begin in range(0, RESAMPLES, rows):
        at = rng.integers(documents, size=(min(rows, RESAMPLES - begin), documents))
        sums.append((candidate[at].sum(axis=1), baseline[at].sum(axis=1)))
    above, below = (np.concatenate(each) for each in zip(*sums, strict=True))
    if not below.all():
        return None
    lower, upper = np.quantile(above / below, [0.025, 0.975])
    return RatioInterval(float(lower), float(upper))
