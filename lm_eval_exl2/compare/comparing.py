"""Runs -> a comparison: every unit assessed, an average, a verdict per candidate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lm_eval_exl2 import __version__
from lm_eval_exl2.compare import verdict
from lm_eval_exl2.compare.about import largest_first, notes_on, variant_of
from lm_eval_exl2.compare.answers import Integers
from lm_eval_exl2.compare.assess import Assessed, assess
from lm_eval_exl2.compare.changed import Noise, count_flips, list_flips, measure_noise, write_flips
from lm_eval_exl2.compare.judging import (
    average_of,
    in_sequence,
    once_per_benchmark,
    verdict_on,
)
from lm_eval_exl2.compare.policy import Profile
from lm_eval_exl2.compare.primary import Line
from lm_eval_exl2.compare.results import (
    CandidateResult,
    Comparison,
    Flip,
    ScoreOnly,
    Step,
)
from lm_eval_exl2.compare.runs import Run
from lm_eval_exl2.compare.samples import read_documents
from lm_eval_exl2.compare.score_only import score_only
from lm_eval_exl2.compare.scores import BINARY, kind_of
from lm_eval_exl2.compare.settings import unequal_settings
from lm_eval_exl2.compare.units import Library, Stratum, Unit, check_group, find_units, strata
from lm_eval_exl2.errors import ComparisonError, TaskLeftOutError, UnknownRuleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a user can choose about a comparison."""

    table: Sequence[Line]
    profile: Profile
    by_document: bool = False
    cluster: str | None = None
    """The field of the documents that clusters share; None: a usual one, if there is; "": none."""
    accept_limited: bool = False
    shown_flips: int = 20
    """Per unit and kind."""
    tasks: Sequence[str] = ()
    """Units to compare; all if empty."""
    adjacent: bool = False
    """Whether each candidate is also compared with the next larger one."""


def compare_runs(
    baseline: Run,
    candidates: Sequence[Run],
    choices: Choices,
    *,
    noise: tuple[Run, Run] | None = None,
) -> Comparison:
    """Compare candidates with a baseline.

    Args:
        baseline: What is given up.
        candidates: What replaces it, in any order.
        choices: See there.
        noise: The same checkpoint run twice.

    Raises:
        ComparisonError: Nothing can be compared, or files contradict each other.
    """
    library = library_of(choices)
    units = _units(baseline, choices, library)
    measured = measure_noise(units, noise, library) if noise else {}
    ordered = largest_first(candidates)
    found: list[CandidateResult] = []
    stopped = ""
    for run in ordered:
        one = _compare(baseline, run, units, choices, library, measured)
        one = in_sequence(one, stopped, choices.profile)
        if not stopped and one.verdict.evidence != verdict.SUPPORTED:
            stopped = run.label
        found.append(one)
    profile = choices.profile
    return Comparison(
        baseline=variant_of(baseline),
        candidates=found,
        profile=profile.name,
        drop=profile.drop,
        decide_by=profile.decide_by,
        accepts=profile.accepts,
        unequal_settings=[(row.name, row.values) for row in unequal_settings([baseline, *ordered])],
        notes=[note for run in (baseline, *ordered) for note in notes_on(run)],
        lm_eval_exl2_version=__version__,
        steps=_steps(ordered, choices, library) if choices.adjacent else [],
    )


def _steps(ordered: Sequence[Run], choices: Choices, library: Library) -> list[Step]:
    quiet = replace(choices, shown_flips=0)
    steps: list[Step] = []
    for larger, smaller in pairwise(ordered):
        units = _units(larger, quiet, library)
        found = _compare(larger, smaller, units, quiet, library, {})
        steps.append(Step(larger.label, smaller.label, found.average, found.verdict.state))
    return steps


def all_flips(baseline: Run, candidates: Sequence[Run], choices: Choices) -> Iterator[str]:
    """Every answer that changed, as lines of JSON with the candidate's label."""
    library = library_of(choices)
    for run in candidates:
        for unit in _units(baseline, choices, library):
            try:
                parts = strata(unit, baseline, run, library, by_document=choices.by_document)
            except TaskLeftOutError:
                continue
            if kind_of(parts) == BINARY:
                yield from write_flips(run.label, unit, parts)


def library_of(choices: Choices) -> Library:
    """An empty library that looks for the clusters asked for."""
    if choices.cluster is None:
        return Library()
    return Library((choices.cluster,) if choices.cluster else ())


def _units(baseline: Run, choices: Choices, library: Library) -> list[Unit]:
    units = find_units(baseline, choices.table, library)
    names = [unit.name for unit in units]
    for name in choices.tasks:
        if name not in names:
            raise ComparisonError(f"{baseline.label} has no {name}, there are {', '.join(names)}")
    return [unit for unit in units if not choices.tasks or unit.name in choices.tasks]


def _compare(
    baseline: Run,
    run: Run,
    units: Sequence[Unit],
    choices: Choices,
    library: Library,
    noise: dict[str, Noise],
) -> CandidateResult:
    assessed: list[Assessed] = []
    flips: list[Flip] = []
    left_out: dict[str, str] = {}
    lacking: list[str] = []
    scores_only: list[ScoreOnly] = []
    for given in units:
        try:
            unit = check_group(given, run, library)
            parts = strata(unit, baseline, run, library, by_document=choices.by_document)
        except TaskLeftOutError as error:
            alone = score_only(given, baseline, run, str(error))
            if isinstance(error, UnknownRuleError) and alone is not None:
                scores_only.append(alone)
                continue
            left_out[given.name] = str(error)
            lacking += [given.name] if given.higher_is_better else []
            continue
        one = assess(
            unit,
            parts,
            choices.profile,
            missing=[baseline.tasks[name] for name in unit.tasks if name not in run.tasks],
            clusters=_clusters(parts, choices.cluster),
            accept_limited=choices.accept_limited,
        )
        if one.result.kind == BINARY and unit.higher_is_better:
            counts = count_flips(unit, parts, noise.get(unit.name))
            one = replace(one, result=replace(one.result, flips=counts))
            flips += list_flips(unit, parts, choices.shown_flips)
        assessed.append(one)
    if not assessed and not scores_only:
        reasons = "; ".join(left_out.values())
        raise ComparisonError(f"nothing of {run.label} can be compared: {reasons}")
    assessed = once_per_benchmark(assessed)
    only_there = [name for name in run.tasks if name not in baseline.tasks]
    left_out |= {name: f"{name} was not run with {baseline.label}" for name in only_there}
    average = average_of(assessed)
    return CandidateResult(
        variant_of(run),
        [one.result for one in assessed],
        average,
        verdict_on(choices.profile, average, assessed, lacking),
        flips,
        left_out,
        [
            f"{run.label}, {part}: the last line of its samples is only half there"
            for part in _broken(run, units, library)
        ],
        scores_only,
    )


def _clusters(parts: Sequence[Stratum], chosen: str | None) -> Integers | None:
    """What each compared document belongs to; None where each stands for itself.

    A usual field in which all documents of a task are the same tells none of them apart: it is
    taken for clusters only if it was asked for.

    Raises:
        ComparisonError: Documents lack the field that was asked for.
    """
    found: list[Integers] = []
    for part in parts:
        samples = part.baseline_samples
        if chosen and samples.cluster_field != chosen:
            raise ComparisonError(
                f"{part.task.name}: no field {chosen!r} in {_fields(part)}; name one, or none"
            )
        digests = samples.clusters[part.at_baseline]
        is_constant = len(digests) > 1 and len(np.unique(digests)) == 1
        found.append(np.arange(len(digests)) if is_constant and chosen is None else digests)
    each_alone = all(len(np.unique(digests)) == len(digests) for digests in found)
    return None if each_alone else np.concatenate(found)


def _fields(part: Stratum) -> str:
    if part.task.samples is None:
        return "its documents"
    (first,) = read_documents(part.task.samples, part.baseline_samples.offsets[:1].tolist())
    return ", ".join(first["doc"])


def _broken(run: Run, units: Sequence[Unit], library: Library) -> list[str]:
    names = [name for unit in units for name in unit.tasks if name in run.tasks]
    return [
        name
        for name in names
        if run.tasks[name].samples is not None and library.broken_lines(run.tasks[name])
    ]
