"""A unit's values on both sides -> scores with intervals, their difference, drops with bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import stats

from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.answers import Floats, Integers
from lm_eval_exl2.compare.results import Bounds, Interval
from lm_eval_exl2.compare.statistics import PairedCounts, PairedMoments
from lm_eval_exl2.compare.units import Stratum, Unit

BINARY, GRADED, PERPLEXITY = "binary", "graded", "perplexity"
_TWO_SIDED, _ONE_SIDED = 0.025, 0.05


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
    """For averages and tests; None for perplexities."""
    design_effect: float | None


class _Drop(NamedTuple):
    """A drop as a fraction, with bounds for the interval and for the verdict."""

    interval: statistics.Bounds
    bounds: statistics.Bounds
    relative: statistics.Bounds | None
    method: str


def kind_of(parts: Sequence[Stratum]) -> str:
    """Whether values are right or wrong, something between, or losses."""
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
        return _compare_losses(parts)
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
    sign = 1 if unit.higher_is_better else -1
    relative = None
    if drop.relative is not None and unit.higher_is_better:
        relative = _scaled(statistic.drop / statistic.baseline, drop.relative, 100, drop.method)
    return Scores(
        _single(kind, statistic.baseline, before),
        _single(kind, statistic.candidate, after),
        _interval(0.0 - statistic.drop, drop.interval, drop.method),
        relative,
        _scaled(statistic.drop, drop.bounds, sign * 100, drop.method),
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
) -> _Drop:
    has_relative = statistic.baseline > 0
    if isinstance(statistic, PairedCounts):
        return _Drop(
            statistics.drop_bounds(statistic, _TWO_SIDED),
            statistics.drop_bounds(statistic, _ONE_SIDED),
            statistics.drop_bounds(statistic, _ONE_SIDED, relative=True) if has_relative else None,
            "Tango score",
        )
    if pooled:
        interval, bounds = (
            statistics.mean_drop(before, after, alpha, span=statistic.span)
            for alpha in (_TWO_SIDED, _ONE_SIDED)
        )
        relative = None
        if has_relative:
            relative = statistics.mean_drop(
                before, after, _ONE_SIDED, span=statistic.span, relative=True
            ).bounds
        return _Drop(interval.bounds, bounds.bounds, relative, interval.method)
    two_sided, one_sided = (
        statistics.Bounds(statistic.drop - away, statistic.drop + away)
        for away in (statistic.deviation(_TWO_SIDED), statistic.deviation(_ONE_SIDED))
    )
    ratio = statistics.average_drop([statistic]).relative_bounds if has_relative else None
    return _Drop(two_sided, one_sided, ratio, "paired t, stratified")


def _widen(
    drop: _Drop,
    robust: PairedMoments,
    before: Floats,
    after: Floats,
    clusters: Integers | None,
) -> _Drop:
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
            for alpha in (_TWO_SIDED, _ONE_SIDED)
        )
        relative = None
        if robust.baseline > 0:
            relative = statistics.mean_drop(
                before, after, _ONE_SIDED, clusters=clusters, span=robust.span, relative=True
            ).bounds
        found = _Drop(interval.bounds, bounds.bounds, relative, interval.method)
    relative = drop.relative
    if relative is not None and found.relative is not None:
        relative = statistics.wider(relative, found.relative)
    return _Drop(
        statistics.wider(drop.interval, found.interval),
        statistics.wider(drop.bounds, found.bounds),
        relative,
        f"the wider of {drop.method} and {found.method}, clustered",
    )


def _scaled(estimate: float, ends: statistics.Bounds, factor: float, method: str) -> Bounds:
    """As the records have them: in per cent or points, infinite bounds as None."""
    low, high = sorted(factor * end for end in ends)
    lower, upper = (float(end) if np.isfinite(end) else None for end in (low, high))
    return Bounds(factor * estimate, lower, upper, method)


def _interval(estimate: float, drop: statistics.Bounds, method: str) -> Interval:
    """Of the difference, from the drop's; infinite ends as None."""
    lower, upper = (float(-end) if np.isfinite(end) else None for end in (drop.upper, drop.lower))
    return Interval(estimate, lower, upper, method)


def _single(kind: str, score: float, values: Floats) -> Interval:
    if kind == BINARY:
        ends = statistics.wilson_interval(score * len(values), len(values))
        return Interval(score, ends.lower, ends.upper, "Wilson")
    if len(values) < 2:
        return Interval(score, None, None, "t")
    away = float(stats.t.isf(0.025, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(score, score - away, score + away, "t")


def are_shares(*values: Floats) -> bool:
    """Whether all values lie between 0 and 1."""
    return all(((each >= 0) & (each <= 1)).all() for each in values)


def _compare_losses(parts: Sequence[Stratum]) -> Scores:
    before = [_losses(part, part.baseline) for part in parts]
    after = [_losses(part, part.candidate) for part in parts]
    ratio = statistics.perplexity_ratio(
        np.concatenate([loss for loss, _ in before]),
        np.concatenate([loss for loss, _ in after]),
        np.concatenate([weight for _, weight in before]),
        candidate_counts=np.concatenate([weight for _, weight in after]),
        starts=_starts(parts[0]) if len(parts) == 1 else None,
        alpha=_TWO_SIDED,
    )
    known = np.isfinite(ratio.bounds.upper)
    ends = ratio.bounds if known else (None, None)
    # As the metric has it: bits per byte are no perplexity, though their ratio is taken as one's.
    single = parts[0] if len(parts) == 1 else None
    before_score = single.rule.score(single.baseline) if single else ratio.baseline
    after_score = single.rule.score(single.candidate) if single else ratio.candidate
    return Scores(
        Interval(before_score, None, None, ""),
        Interval(after_score, None, None, ""),
        Interval(ratio.ratio, *ends, "paired log-ratio, t"),
        None,
        None,
        None,
        None,
    )


def _starts(part: Stratum) -> Integers | None:
    """Each window's first token in its text, where the task says it; None for documents."""
    samples = part.baseline_samples
    if part.rule.name != "loss per target" or "perplexity_stderr" not in samples.texts:
        return None
    starts = np.array([start for _, _, start in samples.texts["perplexity_stderr"]], np.int64)
    return starts[part.at_baseline]


def _losses(part: Stratum, values: Any) -> tuple[Floats, Floats]:
    """Loss and weight per document, whatever way the metric keeps them."""
    if isinstance(values, tuple):
        first, weights = cast("tuple[Floats, Floats]", values)
        return (first if part.rule.name == "loss per target" else -first), weights
    return -values, np.ones(len(values))
