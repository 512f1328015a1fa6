"""Two scores of different documents, or of the same ones without knowing which were right.

Much wider than paired bounds: for where a published score is all there is.
"""

from __future__ import annotations

from lm_eval_exl2.compare.statistics.moments import PairedMoments
from lm_eval_exl2.compare.statistics.proportions import wilson_interval
from lm_eval_exl2.compare.statistics.records import Bounds, check_alpha


def unpaired_drop(
    baseline: float, documents: float, candidate: float, candidate_documents: float, alpha: float
) -> Bounds:
    """Return one-sided bounds of baseline - candidate, two independent shares.

    Newcombe's hybrid score interval (Stat. Med. 17, 1998, 873-890, method 10). For scores between
    0 and 1 that are no counts it is conservative: none varies more than 0/1 values do.

    Args:
        baseline: a share.
        documents: how many it is of.
        candidate: the other share.
        candidate_documents: how many that is of.
        alpha: error rate of each bound.
    """
    check_alpha(alpha)
    first = wilson_interval(baseline * documents, documents, 1 - 2 * alpha)
    second = wilson_interval(candidate * candidate_documents, candidate_documents, 1 - 2 * alpha)
    drop = baseline - candidate
    return Bounds(
        drop - ((baseline - first.lower) ** 2 + (second.upper - candidate) ** 2) ** 0.5,
        drop + ((first.upper - baseline) ** 2 + (candidate - second.lower) ** 2) ** 0.5,
    )


def unpaired_moments(
    baseline: float, documents: float, candidate: float, candidate_documents: float
) -> PairedMoments:
    """Return what an average takes of two independent shares.

    Variances are those of the shares with two successes and two failures added (Agresti and Coull
    1998), so that a share of 0 or 1 has one, too.
    """

    def variance(share: float, of: float) -> float:
        drawn = (share * of + 2) / (of + 4)
        return drawn * (1 - drawn) / (of + 4)

    before, after = variance(baseline, documents), variance(candidate, candidate_documents)
    return PairedMoments(
        baseline=baseline,
        candidate=candidate,
        baseline_variance=before,
        drop_variance=before + after,
        covariance=before,
        units=max(2, int(min(documents, candidate_documents))),
        span=1.0,
    )
