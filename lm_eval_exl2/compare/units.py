"""Two runs -> units: what counts once, a task or a whole group, with its values side by side.

A group that has a score of its own (such as `mmlu`) is one unit, by the rule that gives its written
score; the tasks of any other group count for themselves. Opens samples files, each once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_eval_exl2.compare.answers import Integers
from lm_eval_exl2.compare.pairing import Paired, pair
from lm_eval_exl2.compare.primary import Line, Primary, find_primary
from lm_eval_exl2.compare.recompute import TOLERANCE, Recomputed, Rule, recompute, take
from lm_eval_exl2.compare.runs import Run, TaskRun, leaves, top_groups
from lm_eval_exl2.compare.samples import CLUSTER_FIELDS, FilterSamples, Read, read_samples
from lm_eval_exl2.errors import ComparisonError, TaskLeftOutError


@dataclass(frozen=True, slots=True)
class Unit:
    """What counts once."""

    name: str
    tasks: tuple[str, ...]
    primary: Primary
    rule: str
    """"mean" of a single task; "micro" (over documents) or "macro" (over tasks) of a group."""
    higher_is_better: bool
    other_rules: tuple[str, ...] = ()
    """Of a group: those that give the baseline's score as well."""


class Stratum(NamedTuple):
    """One task of a unit: the documents that both runs have."""

    task: TaskRun
    candidate_task: TaskRun
    baseline: Any
    """Values, as the metric's rule takes them."""
    candidate: Any
    rule: Rule
    paired: Paired
    baseline_samples: FilterSamples
    candidate_samples: FilterSamples
    at_baseline: Integers
    """Places of the compared documents among the baseline's samples."""
    at_candidate: Integers
    broken_lines: int
    """Samples files that end in half a line."""


class Library:
    """Samples files that have been read."""

    def __init__(self, cluster_fields: Sequence[str] = CLUSTER_FIELDS) -> None:
        """Start empty; see `read_samples` for the fields."""
        self._cluster_fields = cluster_fields
        self._read: dict[Path, Read] = {}

    def samples(self, task: TaskRun, filter_name: str) -> FilterSamples:
        """A task's samples behind a filter.

        Raises:
            TaskLeftOutError: There are none.
        """
        read = self._open(task)
        if filter_name not in read.filters:
            raise TaskLeftOutError(
                f"{task.name}: no samples behind filter {filter_name!r} in {task.samples}"
            )
        return read.filters[filter_name]

    def broken_lines(self, task: TaskRun) -> int:
        """Whether the task's file ends in half a line."""
        return self._open(task).broken_lines

    def recomputed(self, task: TaskRun, primary: Primary) -> Recomputed:
        """A task's score, computed again."""
        return recompute(
            task,
            self.samples(task, primary.filter),
            primary.metric,
            primary.filter,
            must_agree=primary.is_listed,
            is_partial=self.broken_lines(task) > 0,
        )

    def _open(self, task: TaskRun) -> Read:
        if task.samples is None:
            raise TaskLeftOutError(
                f"{task.name}: no samples beside {task.file}; run lm_eval with --log_samples"
            )
        if task.samples not in self._read:
            self._read[task.samples] = read_samples(
                task.samples, delimiter=task.delimiter, cluster_fields=self._cluster_fields
            )
        return self._read[task.samples]


def find_units(run: Run, table: Sequence[Line], library: Library) -> list[Unit]:
    """What counts once in a run, groups first, in the run's order.

    Raises:
        ComparisonError: A group's written score follows from its tasks by no known rule.
    """
    taken: set[str] = set()
    units: list[Unit] = []
    for group in top_groups(run):
        for unit in _units_of(run, group, table, library):
            if taken.isdisjoint(unit.tasks):
                units.append(unit)
                taken.update(unit.tasks)
    return units + [_single(run.tasks[name], table) for name in run.tasks if name not in taken]


def _units_of(run: Run, group: str, table: Sequence[Line], library: Library) -> Iterator[Unit]:
    results = run.group_results.get(group, {})
    tasks = [name for name in leaves(run, group) if name in run.tasks]
    if any("," in name for name in results) and tasks:
        known = {metric for name in tasks for metric in run.tasks[name].higher_is_better}
        primary = find_primary(group, results, dict.fromkeys(known, True), table)
        better = run.tasks[tasks[0]].higher_is_better.get(primary.metric, True)
        with suppress(TaskLeftOutError):  # then its tasks count, each or none
            rule, *others = _rules_of_group(run, group, tasks, primary, library)
            yield Unit(group, tuple(tasks), primary, rule, better, tuple(others))
            return
    for member in run.groups[group]:
        if member in run.groups:
            yield from _units_of(run, member, table, library)
        elif member in run.tasks:
            yield _single(run.tasks[member], table)


def _single(task: TaskRun, table: Sequence[Line]) -> Unit:
    primary = find_primary(task.name, task.results, task.higher_is_better, table)
    better = task.higher_is_better.get(primary.metric, True)
    return Unit(task.name, (task.name,), primary, "mean", better)


def _rules_of_group(
    run: Run, group: str, tasks: Sequence[str], primary: Primary, library: Library
) -> list[str]:
    found = [library.recomputed(run.tasks[name], primary) for name in tasks]
    if any(each.rule.kind == "corpus" for each in found):
        raise TaskLeftOutError(f"{group}: a mean of corpus metrics; its tasks are compared")
    written = run.group_results[group][f"{primary.metric},{primary.filter}"]
    if any(library.broken_lines(run.tasks[name]) for name in tasks):
        return ["micro"]
    if fitting := [rule for rule in _RULES if _fits(rule, found, written)]:
        return fitting
    raise ComparisonError(
        f"{group}: {primary.metric} is {written}, but its {len(tasks)} tasks give "
        f"{score_of_group('micro', found)} by documents and {score_of_group('macro', found)} by "
        "tasks; the results were put together from different runs"
    )


_RULES = ("micro", "macro")


def _fits(rule: str, tasks: Sequence[Recomputed], written: Any) -> bool:
    score = score_of_group(rule, tasks)
    return math.isclose(score, written, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def check_group(unit: Unit, run: Run, library: Library) -> Unit:
    """Check the candidate's score of a group, and that both runs' follow from one rule.

    Returns:
        The unit, by the rule that gives both scores: where a baseline's tasks are all equally good,
        only the candidate tells micro from macro.

    Raises:
        ComparisonError: There is no such rule.
    """
    written = run.group_results.get(unit.name, {}).get(
        f"{unit.primary.metric},{unit.primary.filter}"
    )
    tasks = [run.tasks[name] for name in unit.tasks if name in run.tasks]
    broken = any(library.broken_lines(task) for task in tasks if task.samples is not None)
    if unit.rule == "mean" or written is None or len(tasks) < len(unit.tasks) or broken:
        return unit
    found = [library.recomputed(task, unit.primary) for task in tasks]
    fitting = [rule for rule in _RULES if _fits(rule, found, written)]
    if unit.rule in fitting:
        return unit
    if fitting and fitting[0] in unit.other_rules:
        return replace(unit, rule=fitting[0])
    raise ComparisonError(
        f"{unit.name} of {run.label}: {unit.primary.metric} is {written}, but its tasks give "
        f"{score_of_group(unit.rule, found)}; the results were put together from different runs"
    )


def score_of_group(rule: str, tasks: Sequence[Recomputed]) -> float:
    """A group's score from those of its tasks."""
    scores = [task.score for task in tasks]
    sizes = [len(task.present) if rule == "micro" else 1 for task in tasks]
    return math.fsum(score * size for score, size in zip(scores, sizes, strict=True)) / sum(sizes)


def strata(
    unit: Unit, baseline: Run, candidate: Run, library: Library, *, by_document: bool = False
) -> list[Stratum]:
    """A unit's tasks that both runs have, their documents side by side.

    Raises:
        TaskLeftOutError: The candidate has none of them, or a score follows no known rule.
        ComparisonError: A task cannot be paired, or its files contradict each other.
    """
    both = [name for name in unit.tasks if name in candidate.tasks]
    if not both:
        raise TaskLeftOutError(f"{unit.name} was not run with {candidate.label}")
    found: list[Stratum] = []
    for name in both:
        sides = baseline.tasks[name], candidate.tasks[name]
        found.append(_stratum(unit, *sides, library, by_document=by_document))
    return found


def _stratum(
    unit: Unit, task: TaskRun, other: TaskRun, library: Library, *, by_document: bool
) -> Stratum:
    filter_name = unit.primary.filter
    first, second = library.samples(task, filter_name), library.samples(other, filter_name)
    paired = pair(task.name, first, second, by_document=by_document)
    one = library.recomputed(task, unit.primary)
    two = library.recomputed(other, unit.primary)
    kept = np.isin(paired.baseline, one.present) & np.isin(paired.candidate, two.present)
    at_first, at_second = paired.baseline[kept], paired.candidate[kept]
    return Stratum(
        task,
        other,
        take(one.values, np.searchsorted(one.present, at_first)),
        take(two.values, np.searchsorted(two.present, at_second)),
        one.rule,
        paired,
        first,
        second,
        at_first,
        at_second,
        library.broken_lines(task) + library.broken_lines(other),
    )
