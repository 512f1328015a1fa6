"""Scores that stand side by side without pairs: their samples do not give them by a known rule.

tinyBenchmarks are such scores: estimates of a full run's from 100 documents.
"""

from __future__ import annotations

from lm_eval_exl2.compare.results import ScoreOnly
from lm_eval_exl2.compare.runs import Run
from lm_eval_exl2.compare.units import Unit
from lm_eval_exl2.tasks.quick.tiny_benchmarks import published_errors


def score_only(unit: Unit, baseline: Run, candidate: Run, reason: str) -> ScoreOnly | None:
    """What both results files say of a unit; None where one has no such score."""
    name = f"{unit.primary.metric},{unit.primary.filter}"
    before, after = (_results(unit, run).get(name) for run in (baseline, candidate))
    if not (isinstance(before, int | float) and isinstance(after, int | float)):
        return None
    published = published_errors().get(unit.name)
    error = published.error if published and published.metric == unit.primary.metric else None
    return ScoreOnly(unit.name, unit.primary.metric, float(before), float(after), error, reason)


def _results(unit: Unit, run: Run) -> dict[str, object]:
    task = run.tasks.get(unit.name)
    return run.group_results.get(unit.name, {}) if task is None else task.results
