"""A block for a model card: the table that EXL2 cards have, and `.eval_results` for the hub.

Only what was measured is filled in: there is no column for memory in use or divergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import Any, NamedTuple

import yaml

from lm_eval_exl2.compare.render import headline, words
from lm_eval_exl2.compare.render.blocks import Table
from lm_eval_exl2.compare.render.markdown import escape, write_table
from lm_eval_exl2.compare.results import CandidateResult, Comparison, UnitResult, Variant


class Registered(NamedTuple):
    """A data set that the hub lists as a benchmark."""

    dataset: str
    task: str


REGISTERED: Mapping[str, Registered] = {"gsm8k": Registered("openai/gsm8k", "gsm8k")}
"""By benchmark of our table; https://huggingface.co/docs/hub/eval-results says which exist."""


def to_card(comparison: Comparison) -> str:
    """Quant, weights, perplexity, tasks, recovery; scores with 95 % intervals.

    The baseline's scores are those on the documents of the first candidate that has the task.
    """
    units: dict[str, UnitResult] = {}
    for candidate in comparison.candidates:
        for unit in candidate.units:
            units.setdefault(unit.name, unit)
    ordered = sorted(units.values(), key=lambda unit: unit.kind != "perplexity")
    header = ["Quant", "Weights", *(_title(unit) for unit in ordered), "Recovery"]
    baseline = [words.score_interval(unit, unit.baseline) for unit in ordered]
    rows = [[*_named(comparison.baseline), *baseline, "100 %"]]
    names = [unit.name for unit in ordered]
    rows += [_row(candidate, names) for candidate in comparison.candidates]
    return f"{write_table(Table(header, rows))}\n\n{escape(_legend(comparison))}\n"


def _title(unit: UnitResult) -> str:
    return f"{unit.name} {unit.metric}" if unit.kind != "perplexity" else f"Perplexity, {unit.name}"


def _named(variant: Variant) -> list[str]:
    bits = variant.bits_per_weight
    name = variant.label if bits is None else f"{variant.label} ({words.bits(bits)} bpw)"
    return [name, words.size(variant.checkpoint_bytes)]


def _row(candidate: CandidateResult, names: list[str]) -> list[str]:
    found = {unit.name: unit for unit in candidate.units}
    cells: list[str] = []
    for name in names:
        unit = found.get(name)
        part = headline.part_of(unit) if unit else ""
        cell = words.score_interval(unit, unit.candidate) if unit else words.ABSENT
        cells.append(f"{cell} ({part} documents)" if part else cell)
    return [*_named(candidate.variant), *cells, _recovery(candidate)]


def _recovery(candidate: CandidateResult) -> str:
    if candidate.average is None:
        return words.ABSENT
    drop = candidate.average.relative
    ends = [words.number(words.left_of(100, each), 1) for each in (drop.upper, drop.lower)]
    return words.bracketed(f"{words.number(100 - drop.estimate, 1)} %", ends)


def _legend(comparison: Comparison) -> str:
    return (
        f"Recovery: the average score in per cent of that of {comparison.baseline.label}, with "
        "one-sided 95 % bounds. Scores: 95 % intervals. Measured with lm-evaluation-harness and "
        f"compared, paired by document, with lm_eval_exl2 {comparison.lm_eval_exl2_version}."
    )


def eval_results(
    candidate: CandidateResult, registered: Mapping[str, Registered] = REGISTERED
) -> str:
    """YAML for a file below `.eval_results/` of the candidate's repository.

    Only tasks of registered benchmarks over their whole data set are written, in per cent.

    Args:
        candidate: Whose scores.
        registered: The hub's name of each benchmark that may be written.

    Returns:
        An empty text if there is none.
    """
    found = [
        _entry(candidate.variant, unit, registered[unit.benchmark])
        for unit in candidate.units
        if unit.benchmark in registered
        and unit.documents == unit.full_documents == unit.candidate_documents
        and words.is_known(unit.candidate.estimate)
    ]
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True) if found else ""


def _entry(variant: Variant, unit: UnitResult, registered: Registered) -> dict[str, Any]:
    filtered = "" if unit.filter in ("", "none") else f", {unit.filter}"
    bits = "" if variant.bits_per_weight is None else f"{words.bits(variant.bits_per_weight)} bpw, "
    entry: dict[str, Any] = {
        "dataset": {"id": registered.dataset, "task_id": registered.task},
        "value": round(100 * unit.candidate.estimate, 2),
        "notes": words.visible(
            f"{bits}lm-evaluation-harness task {unit.name}, {unit.metric}{filtered}, "
            f"{unit.documents} documents"
        ),
    }
    if len(variant.times) == 1:
        with suppress(ValueError):
            entry["date"] = date.fromisoformat(variant.times[0][:10]).isoformat()
    return entry
