"""A unit's values on both sides -> scores with intervals, their difference, drops with bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.answers import Floats, Integers
from lm_eval_exl2.compare.drops import (
    ONE_SIDED,
    TWO_SIDED,
    Drop,
    Scores,
    interval_of,
    points,
    scaled,
)
from lm_eval_exl2.compare.other_scores import compare_corpora, compare_losses
from lm_eval_exl2.compare.results import Interval
from lm_eval_exl2.compare.statistics import PairedCounts, PairedMoments
from lm_eval_exl2.compare.units import Stratum, Unit

BINARY, GRADED, CORPUS, PERPLEXITY = "binary", "graded", "corpus", "perplexity"


def kind_of(parts: Sequence[Stratum]) -> str:
    """Whether values are right or wrong, something between, summed for a corpus, or losses."""
    if parts[0].rule.kind == "corpus":
        return CORPUS
    if parts[0].rule.kind != "mean":
        return PERPLEXITY
    values = np.concatenate([side for part in parts for side in (part.baseline, part.candidate)])
    return BINARY if np.isin(values, (0.0, 1.0)).all() else GRADED


def compare_scores(
    unit: Unit, parts: Sequence[Stratum], clusters: Integers | None = None
) -> Scores:
    """Compare a unit's values.

    Args:
        unit: What counts once.
        parts: Its tasks, paired.
        clusters: What each compared document belongs to; None if documents are independent.
    """
    kind = kind_of(parts)
    if kind == PERPLEXITY:
        return compare_losses(parts)
    if kind == CORPUS:
        return compare_corpora(unit, parts[0])
    before = np.concatenate([part.baseline for part in parts])
    after = np.concatenate([part.candidate for part in parts])
    span = 1.0 if are_shares(before, after) else np.inf
    statistic = _counts(unit, parts) if kind == BINARY else _moments(unit, parts, span)
    drop = _drop(statistic, before, after, pooled=len(parts) == 1)
    effect = None
    if clusters is not None:
        robust = _moments(unit, parts, span, clusters)
        simple = _moments(unit, parts, span)
        effect = robust.drop_variance / simple.drop_variance if simple.drop_variance else 1.0
        drop = _widen(drop, robust, before, after, clusters if len(parts) == 1 else None)
        if effect > 1:
            statistic = robust  # which averages and tests then use
    relative = None
    if drop.relative is not None:
        relative = scaled(statistic.drop / statistic.baseline, drop.relative, 100, drop.method)
    return Scores(
        _single(kind, statistic.baseline, before),
        _single(kind, statistic.candidate, after),
        interval_of(0.0 - statistic.drop, drop.interval, drop.method),
        relative,
        points(unit, statistic.drop, drop) if _have_points(before, after) else None,
        statistic,
        effect,
    )


def _counts(unit: Unit, parts: Sequence[Stratum]) -> PairedCounts:
    tables = [statistics.paired_counts(part.baseline, part.candidate) for part in parts]
    if len(tables) == 1:
        return tables[0]
    weights = [1.0] * len(parts) if unit.rule == "macro" else None
    return statistics.stratified_counts(tables, weights)


def _moments(
    unit: Unit, parts: Sequence[Stratum], span: float, clusters: Integers | None = None
) -> PairedMoments:
    """Of a group by the rule of the group: sums over independent tasks."""
    ends = np.cumsum([len(part.at_baseline) for part in parts]).tolist()
    each = [
        statistics.paired_moments(
            part.baseline,
            part.candidate,
            span=span,
            clusters=None if clusters is None else clusters[end - len(part.at_baseline) : end],
        )
        for part, end in zip(parts, ends, strict=True)
    ]
    sizes = np.array([len(part.at_baseline) for part in parts], float)
    share = np.full(len(parts), 1 / len(parts)) if unit.rule == "macro" else sizes / sizes.sum()

    def total(values: Sequence[float], power: int) -> float:
        return float(np.sum(share**power * np.array(values)))

    return PairedMoments(
        total([one.baseline for one in each], 1),
        total([one.candidate for one in each], 1),
        total([one.baseline_variance for one in each], 2),
        total([one.drop_variance for one in each], 2),
        total([one.covariance for one in each], 2),
        sum(one.units for one in each),
        span,
    )


def _drop(
    statistic: PairedCounts | PairedMoments, before: Floats, after: Floats, *, pooled: bool
) -> Drop:
    has_relative = statistic.baseline > 0
    if isinstance(statistic, PairedCounts):
        return Drop(
            statistics.drop_bounds(statistic, TWO_SIDED),
            statistics.drop_bounds(statistic, ONE_SIDED),
            statistics.drop_bounds(statistic, ONE_SIDED, relative=True) if has_relative else None,
            "Tango score",
        )
    if pooled:
        interval, bounds = (
            statistics.mean_drop(before, after, alpha, span=statistic.span)
            for alpha in (TWO_SIDED, ONE_SIDED)
        )
        relative = None
        if has_relative:
            relative = statistics.mean_drop(
                before, after, ONE_SIDED, span=statistic.span, relative=True
            ).bounds
        return Drop(interval.bounds, bounds.bounds, relative, interval.method)
    two_sided, one_sided = (
        statistics.Bounds(statistic.drop - away, statistic.drop + away)
        for away in (statistic.deviation(TWO_SIDED), statistic.deviation(ONE_SIDED))
    )
    ratio = statistics.average_drop([statistic]).relative_bounds if has_relative else None
    return Drop(two_sided, one_sided, ratio, "paired t, stratified")


def _widen(
    drop: Drop,
    robust: PairedMoments,
    before: Floats,
    after: Floats,
    clusters: Integers | None,
) -> Drop:
    """The wider of the bounds with and without clusters.

    Args:
        drop: Without.
        robust: Moments with them.
        before: Values of a single task, for the bootstrap of few clusters.
        after: The candidate's.
        clusters: None for groups, whose bounds follow from the moments.
    """
    if clusters is None:
        found = _drop(robust, before, after, pooled=False)
    else:
        interval, bounds = (
            statistics.mean_drop(before, after, alpha, clusters=clusters, span=robust.span)
            for alpha in (TWO_SIDED, ONE_SIDED)
        )
        relative = None
        if robust.baseline > 0:
            relative = statistics.mean_drop(
                before, after, ONE_SIDED, clusters=clusters, span=robust.span, relative=True
            ).bounds
        found = Drop(interval.bounds, bounds.bounds, relative, interval.method)
    relative = drop.relative
    if relative is not None and found.relative is not None:
        relative = statistics.wider(relative, found.relative)
    return Drop(
        statistics.wider(drop.interval, found.interval),
        statistics.wider(drop.bounds, found.bounds),
        relative,
        f"the wider of {drop.method} and {found.method}, clustered",
    )


def _single(kind: str, score: float, values: Floats) -> Interval:
    if kind == BINARY:
        ends = statistics.wilson_interval(score * len(values), len(values))
        return Interval(score, ends.lower, ends.upper, "Wilson")
    if len(values) < 2:
        return Interval(score, None, None, "t")
    away = float(stats.t.isf(0.025, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(score, score - away, score + away, "t")


def _have_points(*values: Floats) -> bool:
    """Whether a difference of 1 is one of 100 percentage points; a correlation may be negative."""
    return all((np.abs(each) <= 1).all() for each in values)


def are_shares(*values: Floats) -> bool:
    """Whether all values lie between 0 and 1."""
    return all(((each >= 0) & (each <= 1)).all() for each in values)
