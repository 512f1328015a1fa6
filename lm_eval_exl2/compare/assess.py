"""One unit of two runs -> its scores, drops, tests and flips.

Which statistic answers which question is decided here; the statistics themselves know no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.answers import Integers
from lm_eval_exl2.compare.guards import chance_of_unit, is_sampled, warnings_of
from lm_eval_exl2.compare.policy import Profile
from lm_eval_exl2.compare.results import Interval, Part, UnitResult
from lm_eval_exl2.compare.runs import TaskRun
from lm_eval_exl2.compare.scores import (
    BINARY,
    CORPUS,
    PERPLEXITY,
    Scores,
    are_shares,
    compare_scores,
    kind_of,
)
from lm_eval_exl2.compare.statistics import PairedCounts, PairedMoments, StatisticsError
from lm_eval_exl2.compare.units import Stratum, Unit

LOWEST_BASELINE = 0.05
"""Below this score a relative drop says nothing."""


@dataclass(frozen=True, slots=True)
class Assessed:
    """A unit and what an average needs of it."""

    result: UnitResult
    statistic: PairedCounts | PairedMoments | None
    """None for perplexities."""
    is_screening: bool = False
    """Whether it is a part of a benchmark, run to look at it quickly."""


def assess(
    unit: Unit,
    parts: Sequence[Stratum],
    profile: Profile,
    *,
    missing: Sequence[TaskRun] = (),
    clusters: Integers | None = None,
    accept_limited: bool = False,
) -> Assessed:
    """Compare one unit.

    Args:
        unit: What counts once.
        parts: Its tasks, paired.
        profile: Gives the margin of the tests.
        missing: The unit's tasks that the candidate lacks.
        clusters: What each compared document belongs to; None if documents are independent.
        accept_limited: Whether runs with --limit count as evidence.
    """
    kind, found = kind_of(parts), compare_scores(unit, parts, clusters)
    chance = None
    if kind == BINARY:
        chance = chance_of_unit(
            [(part.baseline_samples.choices, len(part.at_baseline)) for part in parts]
        )
    first = parts[0]
    full = [task.documents for task in (*(part.task for part in parts), *missing)]
    lacking = sum(int(task.results.get("sample_len") or 0) for task in missing)
    left_out = _left_out(unit, kind, found, parts, chance)
    # At chance and near zero a share of the score means nothing.
    relative = None if left_out and kind != CORPUS else found.relative
    result = UnitResult(
        name=unit.name,
        benchmark=unit.primary.benchmark,
        metric=unit.primary.metric,
        filter=unit.primary.filter,
        kind=kind,
        rule=unit.rule,
        higher_is_better=unit.higher_is_better,
        documents=sum(len(part.at_baseline) for part in parts),
        baseline_documents=sum(part.paired.baseline_documents for part in parts) + lacking,
        candidate_documents=sum(part.paired.candidate_documents for part in parts),
        full_documents=None if None in full else sum(size or 0 for size in full),
        baseline=found.baseline,
        candidate=found.candidate,
        difference=found.difference,
        relative=relative,
        absolute=found.absolute,
        chance=chance,
        macro=_macro(unit, kind, parts),
        beside=_beside(unit, first),
        parts=_parts(kind, parts) if len(parts) > 1 and unit.higher_is_better else [],
        left_out=left_out,
        not_settled=why_not_settled(_tasks(parts), accept_limited=accept_limited),
        never_supported=_never_supported(unit, parts, found, missing),
        design_effect=found.design_effect,
        warnings=_warnings(unit, parts, found),
        **_tests(unit, found, profile),
    )
    return Assessed(result, found.statistic, bool(_screening(parts)))


def _tests(unit: Unit, found: Scores, profile: Profile) -> dict[str, Any]:
    """Non-inferiority, equivalence and power at the margin that the profile accepts here."""
    accepted = profile.cap(unit.primary.benchmark) or profile.accepts
    table = found.statistic
    if accepted is None or not isinstance(table, PairedCounts) or not unit.higher_is_better:
        return {}
    relative = profile.drop == "relative"
    if relative and table.baseline == 0:
        return {}
    margin = accepted / 100
    flip_rate = table.discordant / table.documents
    absolute = margin * table.baseline if relative else margin
    size = max(1, round(table.documents))
    return {
        "non_inferior_p": statistics.score_test(table, margin, relative=relative).below,
        "tost_p": statistics.equivalence_p(table, margin, relative=relative),
        "certify_probability": statistics.certification_power(size, flip_rate, absolute),
        "documents_needed": _needed(flip_rate, absolute),
    }


def _needed(flip_rate: float, margin: float) -> int | None:
    """How many documents certify a lossless candidate with probability 80 %; None is too many."""
    try:
        return statistics.documents_needed(flip_rate, margin)
    except StatisticsError:
        return None


def _parts(kind: str, parts: Sequence[Stratum]) -> list[Part]:
    """A group's tasks, and which of them are clearly worse (Holm)."""
    if kind == "perplexity":
        return []
    tables = [
        statistics.paired_counts(part.baseline, part.candidate) if kind == "binary" else None
        for part in parts
    ]
    worse = [1.0 if table is None else _worse_p(table) for table in tables]
    adjusted = statistics.holm(worse)
    return [
        Part(
            part.task.name,
            len(part.at_baseline),
            float(part.baseline.mean()),
            float(part.candidate.mean()),
            None if table is None else int(table.lost),
            None if table is None else int(table.gained),
            None if table is None else statistics.mcnemar(table).exact,
            p < 0.05,
        )
        for part, table, p in zip(parts, tables, adjusted, strict=True)
    ]


def _worse_p(table: PairedCounts) -> float:
    """One-sided exact McNemar: as many or more lost of those that changed."""
    changed = int(table.discordant)
    return float(stats.binom.sf(int(table.lost) - 1, changed, 0.5)) if changed else 1.0


def _macro(unit: Unit, kind: str, parts: Sequence[Stratum]) -> tuple[float, float] | None:
    if unit.rule != "micro" or kind == "perplexity":
        return None
    sides = [[float(part.baseline.mean()), float(part.candidate.mean())] for part in parts]
    before, after = np.mean(sides, axis=0).tolist()
    return before, after


def _beside(unit: Unit, part: Stratum) -> tuple[str, float, float] | None:
    name = f"{unit.primary.metric},{unit.primary.beside}"
    before, after = part.task.results.get(name), part.candidate_task.results.get(name)
    if not unit.primary.beside or before is None or after is None:
        return None
    return unit.primary.beside, float(before), float(after)


def _left_out(
    unit: Unit, kind: str, found: Scores, parts: Sequence[Stratum], chance: float | None
) -> str:
    if kind == PERPLEXITY:
        return "a perplexity"
    if kind == CORPUS:
        return "a corpus metric, which is no mean over documents"
    if not unit.higher_is_better:
        return "lower is better"
    if not all(are_shares(part.baseline, part.candidate) for part in parts):
        return "its values are not between 0 and 1"
    return why_too_low(found.baseline, chance)


def why_too_low(baseline: Interval, chance: float | None) -> str:
    """Why no share of a baseline's score means anything; empty if it does."""
    if chance is not None and baseline.lower is not None and baseline.lower <= chance:
        return f"the baseline's interval reaches chance ({chance:.0%})"
    if baseline.estimate < LOWEST_BASELINE:
        return f"the baseline's score is below {LOWEST_BASELINE:.0%}"
    return ""


def why_not_settled(tasks: Sequence[TaskRun], *, accept_limited: bool) -> str:
    """Why runs are no evidence, whatever their numbers are; empty if they are."""
    if any(task.limited for task in tasks) and not accept_limited:
        return "--limit takes the first documents, not a random sample"
    return ""


def _never_supported(
    unit: Unit, parts: Sequence[Stratum], found: Scores, missing: Sequence[TaskRun]
) -> str:
    if missing:
        return f"{len(missing)} of {len(unit.tasks)} tasks of {unit.name} are missing"
    if "too skewed" in found.difference.method:
        return "values too skewed for so few documents"
    return _screening(parts)


def _screening(parts: Sequence[Stratum]) -> str:
    metadata: list[dict[str, Any]] = [task.config.get("metadata") or {} for task in _tasks(parts)]
    if any("screening" in each for each in metadata):
        return "a quick run screens"
    if any(task.name.startswith("tiny") for task in _tasks(parts)):
        return "an estimate from 100 documents"
    return ""


def _tasks(parts: Sequence[Stratum]) -> list[TaskRun]:
    return [task for part in parts for task in (part.task, part.candidate_task)]


def _warnings(unit: Unit, parts: Sequence[Stratum], found: Scores) -> list[str]:
    said: list[str] = []
    for part in parts:
        if part.paired.moved:
            said.append(f"{part.task.name}: {part.paired.moved} documents have another doc_id")
        if part.broken_lines:
            said.append(
                f"{part.task.name}: a samples file ends in half a line, so the score of the whole "
                "run could not be checked"
            )
        sides = (
            ("baseline", part.baseline_samples, part.at_baseline, found.baseline),
            ("candidate", part.candidate_samples, part.at_candidate, found.candidate),
        )
        for side, samples, places, score in sides:
            what = warnings_of(samples, places, score.estimate)
            said += [f"{part.task.name}, {side}: {each}" for each in what]
        if part.paired.prompts_differ:
            said.append(f"{part.task.name}: prompts differ, so by more than the weights")
        if is_sampled(part.task.config) or is_sampled(part.candidate_task.config):
            said.append(f"{part.task.name}: answers are sampled; part of the flips is chance")
    if not unit.primary.is_listed:
        metric = unit.primary.metric
        said.append(f"{unit.name} is in no table; its first metric, {metric}, is taken to count")
    return said
