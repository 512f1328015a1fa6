"""Runs against published scores: intervals without pairs, which can refute but never support.

A published score comes without its samples, and often with other prompts, examples or versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm_eval_exl2 import __version__
from lm_eval_exl2.compare import primary, statistics
from lm_eval_exl2.compare.about import largest_first, notes_on, variant_of
from lm_eval_exl2.compare.assess import Assessed, why_not_settled, why_too_low
from lm_eval_exl2.compare.comparing import Choices, library_of
from lm_eval_exl2.compare.drops import ONE_SIDED, TWO_SIDED, interval_of, scaled
from lm_eval_exl2.compare.guards import chance_of_unit
from lm_eval_exl2.compare.judging import average_of, verdict_on
from lm_eval_exl2.compare.published import Published
from lm_eval_exl2.compare.recompute import Recomputed
from lm_eval_exl2.compare.results import (
    CandidateResult,
    Comparison,
    Interval,
    UnitResult,
    Variant,
)
from lm_eval_exl2.compare.runs import Run
from lm_eval_exl2.compare.samples import FilterSamples
from lm_eval_exl2.compare.settings import unequal_settings
from lm_eval_exl2.compare.units import Library, Unit, find_units, score_of_group
from lm_eval_exl2.errors import ComparisonError, TaskLeftOutError

_METHOD = "Newcombe, unpaired"


def compare_with_published(
    path: Path, scores: Sequence[Published], candidates: Sequence[Run], choices: Choices
) -> Comparison:
    """Compare runs with published scores.

    Args:
        path: Where the scores come from; its name labels the baseline.
        scores: One per task.
        candidates: Any runs.
        choices: Its table is used behind the metrics that the scores name.

    Raises:
        ComparisonError: A run has none of the tasks, or its files contradict each other.
    """
    scores = [each for each in scores if not choices.tasks or each.task in choices.tasks]
    named = [
        primary.Line(task=each.task, metric=each.metric, filter=each.filter) for each in scores
    ]
    table = [*named, *choices.table]
    ordered = largest_first(candidates)
    settings = [(row.name, ["-", *row.values]) for row in unequal_settings(ordered)]
    profile = choices.profile
    return Comparison(
        baseline=Variant(path.stem, str(path), [], None, None, None),
        candidates=[_compare(run, scores, table, choices) for run in ordered],
        profile=profile.name,
        drop=profile.drop,
        decide_by=profile.decide_by,
        accepts=profile.accepts,
        unequal_settings=settings,
        notes=[
            f"{path.name}: published scores; prompts, examples and versions may differ, so by more "
            "than the weights",
            *(f"{each.task}: {each.value:g} from {each.source}" for each in scores),
            *(note for run in ordered for note in notes_on(run)),
        ],
        lm_eval_exl2_version=__version__,
    )


def _compare(
    run: Run, scores: Sequence[Published], table: Sequence[primary.Line], choices: Choices
) -> CandidateResult:
    library = library_of(choices)
    units = {unit.name: unit for unit in find_units(run, table, library)}
    assessed: list[Assessed] = []
    left_out: dict[str, str] = {}
    for score in scores:
        unit = units.get(score.task)
        if unit is None or unit.primary.metric != score.metric:
            left_out[score.task] = f"{run.label} has no {score.metric} of {score.task}"
            continue
        try:
            assessed.append(_assess(unit, run, score, library, choices))
        except TaskLeftOutError as error:
            left_out[score.task] = str(error)
    if not assessed:
        raise ComparisonError(f"nothing can be compared: {'; '.join(left_out.values())}")
    average = average_of(assessed)
    judged = verdict_on(choices.profile, average, assessed, list(left_out))
    results = [one.result for one in assessed]
    return CandidateResult(variant_of(run), results, average, judged, [], left_out, [])


def _assess(unit: Unit, run: Run, score: Published, library: Library, choices: Choices) -> Assessed:
    tasks = [run.tasks[name] for name in unit.tasks]
    found = [library.recomputed(task, unit.primary) for task in tasks]
    if not unit.higher_is_better or any(each.rule.kind != "mean" for each in found):
        raise TaskLeftOutError(f"{unit.name}: {score.metric} is no share of right answers")
    candidate = score_of_group(unit.rule, found)
    if not (0 <= score.value <= 1 and 0 <= candidate <= 1):
        raise ComparisonError(
            f"{unit.name}: found {score.value:g} published and {candidate:g} measured, expected "
            "shares between 0 and 1 as the harness writes them; divide per cent by 100"
        )
    samples = [library.samples(task, unit.primary.filter) for task in tasks]
    documents = sum(len(each.present) for each in found)
    of = _documents(unit, found, samples)
    # The published score has as many clusters and tasks to a document.
    published_of = score.documents * of / documents
    sides = score.value, published_of, candidate, of
    moments = statistics.unpaired_moments(*sides)
    two_sided, one_sided = (
        statistics.unpaired_drop(*sides, alpha) for alpha in (TWO_SIDED, ONE_SIDED)
    )
    drop = score.value - candidate
    relative = None
    if score.value > 0:
        ends = statistics.average_drop([moments]).relative_bounds
        relative = scaled(drop / score.value, ends, 100, "Fieller, unpaired")
    chance = chance_of_unit(
        [(each.choices, len(one.present)) for each, one in zip(samples, found, strict=True)]
    )
    baseline = _wilson(score.value, published_of)
    left_out = why_too_low(baseline, chance)
    full = [task.documents for task in tasks]
    result = UnitResult(
        name=unit.name,
        benchmark=unit.primary.benchmark,
        metric=unit.primary.metric,
        filter=unit.primary.filter,
        kind="unpaired",
        rule=unit.rule,
        higher_is_better=True,
        documents=documents,
        baseline_documents=score.documents,
        candidate_documents=documents,
        full_documents=None if None in full else sum(size or 0 for size in full),
        baseline=baseline,
        candidate=_wilson(candidate, of),
        difference=interval_of(0.0 - drop, two_sided, _METHOD),
        relative=None if left_out else relative,
        absolute=scaled(drop, one_sided, 100, _METHOD),
        chance=chance,
        left_out=left_out,
        not_settled=why_not_settled(tasks, accept_limited=choices.accept_limited),
        never_supported=f"{unit.name} is a published score, so nothing is paired",
    )
    return Assessed(result, moments)


def _documents(unit: Unit, tasks: Sequence[Recomputed], samples: Sequence[FilterSamples]) -> float:
    """How many independent documents would vary as much: fewer for clusters and means of tasks."""
    sizes = [len(each.present) for each in tasks]
    total = sum(1 if unit.rule == "macro" else size for size in sizes)
    shares = [(1 if unit.rule == "macro" else size) / total for size in sizes]
    effects = [_design_effect(*each) for each in zip(tasks, samples, strict=True)]
    return 1 / sum(
        share**2 * effect / size for share, effect, size in zip(shares, effects, sizes, strict=True)
    )


def _design_effect(task: Recomputed, samples: FilterSamples) -> float:
    """By how much clusters widen the variance of a score; 1 where they do not."""
    clusters = samples.clusters[task.present]
    if len(np.unique(clusters)) in (1, len(clusters)):
        return 1.0
    simple, robust = (
        statistics.paired_moments(task.values, task.values, clusters=each).baseline_variance
        for each in (None, clusters)
    )
    return max(1.0, robust / simple) if simple else 1.0


def _wilson(share: float, documents: float) -> Interval:
    ends = statistics.wilson_interval(share * documents, documents)
    return Interval(share, ends.lower, ends.upper, "Wilson")
