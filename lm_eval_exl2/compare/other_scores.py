"""Scores that no mean over documents gives: perplexities and corpus metrics, compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

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
from lm_eval_exl2.compare.results import Interval
from lm_eval_exl2.compare.units import Stratum, Unit


def compare_corpora(unit: Unit, part: Stratum) -> Scores:
    """By a paired bootstrap of documents that takes the score of each draw."""
    score = part.rule.score
    before, after = score(part.baseline), score(part.candidate)
    name = "paired bootstrap, BCa"

    def bounds(alpha: float, *, relative: bool = False) -> statistics.Bounds:
        return statistics.corpus_drop(
            part.baseline, part.candidate, score, alpha, relative=relative
        )

    drop = Drop(bounds(TWO_SIDED), bounds(ONE_SIDED), None, name)
    relative = None
    if before > 0 and unit.higher_is_better:
        ends = bounds(ONE_SIDED, relative=True)
        relative = scaled((before - after) / before, ends, 100, name)
    is_share = max(abs(before), abs(after)) <= 1
    return Scores(
        Interval(before, None, None, ""),
        Interval(after, None, None, ""),
        interval_of(after - before, drop.interval, name),
        relative,
        points(unit, before - after, drop) if is_share else None,
        None,
        None,
    )


def compare_losses(parts: Sequence[Stratum]) -> Scores:
    """By the ratio of perplexities over the same documents or windows."""
    before = [_losses(part, part.baseline) for part in parts]
    after = [_losses(part, part.candidate) for part in parts]
    ratio = statistics.perplexity_ratio(
        np.concatenate([loss for loss, _ in before]),
        np.concatenate([loss for loss, _ in after]),
        np.concatenate([weight for _, weight in before]),
        candidate_counts=np.concatenate([weight for _, weight in after]),
        starts=_starts(parts[0]) if len(parts) == 1 else None,
        alpha=TWO_SIDED,
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
