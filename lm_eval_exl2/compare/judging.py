"""Assessed units of one candidate -> its average, and what a profile says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lm_eval_exl2.compare import policy, statistics, verdict
from lm_eval_exl2.compare.assess import Assessed
from lm_eval_exl2.compare.policy import Profile
from lm_eval_exl2.compare.results import (
    Average,
    Bounds,
    CandidateResult,
    DemandResult,
    UnitResult,
    VerdictResult,
)
from lm_eval_exl2.compare.verdict import Drop


def once_per_benchmark(assessed: Sequence[Assessed]) -> list[Assessed]:
    """Leave quick runs of a benchmark out where the benchmark itself was run, too."""
    full = {one.result.benchmark: one.result.name for one in assessed if not one.is_screening}
    return [
        replace(one, result=_superseded(one.result, full[one.result.benchmark]))
        if one.is_screening and one.result.benchmark in full
        else one
        for one in assessed
    ]


def _superseded(result: UnitResult, by: str) -> UnitResult:
    text = f"{by} counts, which it is a part of"
    return replace(result, left_out=text, relative=None, absolute=None)


def average_of(assessed: Sequence[Assessed]) -> Average | None:
    """The mean of the primary scores and its drop; None where no unit counts."""
    counted = [one for one in assessed if not one.result.left_out and one.statistic is not None]
    if not counted:
        return None
    found = statistics.average_drop([one.statistic for one in counted if one.statistic])
    # What a bootstrap of skewed values adds to a unit's bounds, the average must not lose.
    down, up = (
        sum(_excess(one, side) for one in counted) / len(counted) for side in ("lower", "upper")
    )
    absolute = statistics.Bounds(
        found.absolute_bounds.lower - down, found.absolute_bounds.upper + up
    )
    relative = statistics.Bounds(
        found.relative_bounds.lower - down / found.baseline,
        found.relative_bounds.upper + up / found.baseline,
    )
    name = "score interval over tasks"
    return Average(
        units=[one.result.name for one in counted],
        baseline=found.baseline,
        candidate=found.candidate,
        relative=_bounds(found.relative, relative, f"{name}, ratio"),
        absolute=_bounds(found.absolute, absolute, name),
        left_out={one.result.name: one.result.left_out for one in assessed if one.result.left_out},
    )


def _excess(one: Assessed, side: str) -> float:
    """How far a unit's own bound lies beyond that of its moments, as a fraction."""
    own, moments = one.result.absolute, one.statistic
    if own is None or not isinstance(moments, statistics.PairedMoments):
        return 0.0
    bound: float | None = getattr(own, side)
    if bound is None:
        return 0.0
    away = abs(bound / 100 - moments.drop)
    return max(0.0, away - moments.deviation(0.05))


def _bounds(estimate: float, ends: statistics.Bounds, method: str) -> Bounds:
    lower, upper = (100 * float(end) if np.isfinite(end) else None for end in ends)
    return Bounds(100 * estimate, lower, upper, method)


def verdict_on(
    profile: Profile,
    average: Average | None,
    assessed: Sequence[Assessed],
    not_compared: Sequence[str] = (),
) -> VerdictResult:
    """Judge a candidate's drops by a profile.

    Args:
        profile: What is demanded.
        average: Of the primary scores.
        assessed: All units.
        not_compared: Units of the baseline with a score that the candidate lacks.
    """
    lacking = f"{', '.join(not_compared)} not compared" if not_compared else ""
    results = [one.result for one in assessed]
    whole = None
    if average is not None:
        counted = [result for result in results if result.name in average.units]
        whole = _drop(_of(profile, average), counted, "average", "", profile.accepts, lacking)
    tasks = [
        _drop(
            _of(profile, result),
            [result],
            result.name,
            result.benchmark,
            profile.cap(result.benchmark),
        )
        for result in results
        if _of(profile, result) is not None and result.kind != "perplexity"
    ]
    absent = not_compared if profile.every_task is not None else ()
    found = verdict.decide(profile, whole, [task for task in tasks if task is not None], absent)
    demands = [
        DemandResult(
            each.name,
            each.accepts,
            each.drop.estimate,
            each.drop.lower,
            each.drop.upper,
            each.by_estimate,
            each.evidence,
        )
        for each in found.demands
    ]
    return VerdictResult(
        found.state, found.band, found.evidence, found.explanation, demands, found.missing
    )


def _of(profile: Profile, found: Average | UnitResult) -> Bounds | None:
    return found.relative if profile.drop == "relative" else found.absolute


def _drop(
    bounds: Bounds | None,
    units: Sequence[UnitResult],
    name: str,
    benchmark: str,
    accepts: float | None,
    lacking: str = "",
) -> Drop | None:
    if bounds is None:
        return None
    open_ = dict.fromkeys(unit.not_settled for unit in units if unit.not_settled)
    said = [*(unit.never_supported for unit in units), lacking]
    screening = dict.fromkeys(each for each in said if each)
    return Drop(
        bounds.estimate,
        bounds.lower,
        bounds.upper,
        benchmark,
        name,
        "; ".join(open_),
        "; ".join(screening),
        _hint(bounds, units, accepts),
    )


def _hint(bounds: Bounds, units: Sequence[UnitResult], accepts: float | None) -> str:
    """How many documents would settle it, or that there are not so many."""
    if accepts is None or bounds.lower is None or bounds.upper is None:
        return ""
    documents = sum(unit.documents for unit in units)
    ends = statistics.Bounds(bounds.lower, bounds.upper)
    needed = statistics.documents_to_settle(documents, bounds.estimate, ends, accepts)
    full = [unit.full_documents for unit in units]
    known = sum(size for size in full if size is not None)
    if not np.isfinite(needed) or (None not in full and needed > known):
        return (
            "no full set of these tasks can settle it"
            if len(units) > 1
            else ("no full set of this task can settle it")
        )
    return f"about {max(needed - documents, 1):,.0f} more documents would settle it"


def in_sequence(found: CandidateResult, stopped: str, profile: Profile) -> CandidateResult:
    """Fixed sequence: nothing is supported behind the first candidate that is not."""
    given = found.verdict
    if not stopped or given.evidence != verdict.SUPPORTED or profile.decide_by == "estimate":
        return found
    text = f"{stopped}, which has more bits, is not supported, so the sequence of tests ends there"
    open_ = replace(
        given, state=policy.INCONCLUSIVE, evidence=verdict.NOT_SETTLED, explanation=text
    )
    return replace(found, verdict=open_)
