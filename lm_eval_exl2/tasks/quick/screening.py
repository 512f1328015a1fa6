"""What a run of n documents can say about a drop, before anything is known of its answers.

Pure mathematics of a paired comparison: the same n documents with both checkpoints, and a drop is
the share that turns wrong minus the share that turns right. All bounds are one-sided.
"""

from math import ceil, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

ALPHA: Final = 0.05
POWER: Final = 0.8
# Quantized checkpoints change 5 to 13 % of the answers where the scores hardly move ("Accuracy is
# not all you need", arXiv 2407.09141); the better half of that.
FLIPS: Final = 0.06


class Reach(NamedTuple):
    """Smallest drops that n documents can rule out; as shares, not per cent."""

    at_best: float
    """Not one answer changes."""
    with_flips: float | None
    """`FLIPS` of the answers change, half of them each way; None where scores are graded."""
    with_power: float | None
    """The same, for a run that shall succeed with probability `POWER` if there is no drop."""


def drop_without_flips(documents: int) -> float:
    """Upper bound of a drop when no answer changed: 1 - alpha^(1/n), about 3 / n.

    Clopper and Pearson's bound for none of n ("rule of three"): a drop is at most the share that
    turns wrong. It holds for graded scores between 0 and 1, too: whatever their distribution, no
    method that is right in 95 % of the cases can do better when no score changed.
    """
    return 1.0 - ALPHA ** (1.0 / documents)


def drop_with_flips(documents: int, *, flips: float = FLIPS, power: float = 0.5) -> float:
    """Upper bound of a drop when the scores are equal and some answers flip.

    (z_alpha + z_power) sqrt(flips / n): the difference of one pair is 1, 0 or -1, with variance
    `flips` if there is no drop (McNemar's test as a normal approximation). Never below
    `drop_without_flips`.

    Args:
        documents: n.
        flips: Share of answers that change between right and wrong, both ways together.
        power: Probability that a run rules this drop out when there is none; 0.5 is the bound
            that a run with exactly equal scores gives.
    """
    normal = NormalDist()
    deviations = normal.inv_cdf(1.0 - ALPHA) + normal.inv_cdf(power)
    return max(deviations * sqrt(flips / documents), drop_without_flips(documents))


def reach(documents: int, *, graded: bool = False) -> Reach:
    """All three bounds.

    Args:
        documents: n, at least 1.
        graded: Scores are shares rather than right or wrong, so answers do not flip.
    """
    if graded:
        return Reach(drop_without_flips(documents), None, None)
    return Reach(
        drop_without_flips(documents),
        drop_with_flips(documents),
        drop_with_flips(documents, power=POWER),
    )


def statement(documents: int, *, graded: bool = False) -> str:
    """One sentence for a reader of the table; in percentage points of the score."""
    found = reach(documents, graded=graded)
    size = f"{documents} documents: this size can rule out a drop of {per_cent(found.at_best)}"
    if found.with_flips is None:
        detail = "(no score changes)"
    else:
        detail = (
            f"(not one answer changes), of {per_cent(found.with_flips)} when {FLIPS * 100:.0f} % "
            "of the answers flip and the scores are equal"
        )
    return f"{size} at best {detail}; paired, one-sided 5 %; it screens, it never says ship"


def per_cent(share: float) -> str:
    """A share in per cent, rounded up: a bound must not promise more than it holds."""
    return f"{ceil(round(share * 1000, 6)) / 10:.1f} %"
