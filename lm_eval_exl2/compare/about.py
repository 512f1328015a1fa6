"""One run -> what a report says of it beside its scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lm_eval_exl2.compare.results import Variant
from lm_eval_exl2.compare.runs import Run
from lm_eval_exl2.compare.settings import mixed_versions, size_of
from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.tasks.quick import leaderboard, tiny_benchmarks


def largest_first(runs: Sequence[Run]) -> list[Run]:
    """Runs by bits per weight; those that do not say come last."""
    return sorted(runs, key=_bits, reverse=True)


def _bits(run: Run) -> float:
    bits = size_of(run).bits_per_weight
    return -1.0 if bits is None else bits


def variant_of(run: Run) -> Variant:
    """A run's model, as reports have it."""
    size = size_of(run)
    return Variant(
        run.label,
        str(run.folder),
        list(run.settings),
        size.bits_per_weight,
        size.checkpoint_bytes,
        size.parameters,
    )


def notes_on(run: Run) -> list[str]:
    """What a reader should know of a run before its scores."""
    mixed = [
        f"{run.label}: its results files have different {row.name}: {', '.join(row.values)}"
        for row in mixed_versions(run)
    ]
    limited = [name for name, task in run.tasks.items() if task.limited]
    if limited:
        mixed.append(f"{run.label}: run with --limit or --samples: {', '.join(limited)}")
    return [
        *mixed,
        *_cut_short(run),
        *_averages(run),
        *filter(None, map(tiny_benchmarks.beside, run.tasks)),
    ]


def _cut_short(run: Run) -> list[str]:
    """Answers that max_gen_toks ended, where the engine says so: they may lack their result."""
    found: dict[str, int] = {}
    for settings in run.settings.values():
        config: dict[str, Any] = settings.get("config") or {}
        found |= config.get("generations_at_limit") or {}
    return [
        f"{run.label}: {cut} answers of {task} ended at max_gen_toks, by no stop"
        for task, cut in found.items()
    ]


def _averages(run: Run) -> list[str]:
    """The first Open LLM Leaderboard's average, where all of its tasks were run."""
    results = {name: task.results for name, task in run.tasks.items()}
    found: list[str] = []
    for name, counted in (
        ("Open LLM Leaderboard v1", leaderboard.LEADERBOARD_V1),
        ("Open LLM Leaderboard v1 (quick runs)", leaderboard.QUICK),
    ):
        with suppress(RequestError):  # a task is missing, so there is no such average
            average = leaderboard.average(results, counted).average
            found.append(f"{run.label}: average of {name}: {100 * average:.2f}")
    return found
