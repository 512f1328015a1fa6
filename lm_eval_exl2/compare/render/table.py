"""A comparison as CSV: one row per candidate and task, numbers as they are, units in the names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from lm_eval_exl2.compare.render import recovery
from lm_eval_exl2.compare.render.words import is_known, visible
from lm_eval_exl2.compare.results import (
    Bounds,
    CandidateResult,
    Comparison,
    FlipCounts,
    Interval,
    UnitResult,
)

Cells = dict[str, Any]


def to_csv(comparison: Comparison) -> str:
    """Rows with a header; what is absent or not finite is empty. A comparison has a unit."""
    rows = [
        {**_about(comparison, candidate), **_scores(unit), **_tests(unit), **_remarks(unit)}
        for candidate in comparison.candidates
        for unit in candidate.units
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        # A spreadsheet would run a text that begins like a formula.
        text = visible(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(float(value)) if is_known(value) else ""
    return value


def _about(comparison: Comparison, candidate: CandidateResult) -> Cells:
    return {
        "baseline": comparison.baseline.label,
        "candidate": candidate.variant.label,
        "bits_per_weight": candidate.variant.bits_per_weight,
        "checkpoint_bytes": candidate.variant.checkpoint_bytes,
        "profile": comparison.profile,
        "decide_by": comparison.decide_by,
        "verdict": candidate.verdict.state,
        "band": candidate.verdict.band,
        "evidence": candidate.verdict.evidence,
    }


def _scores(unit: UnitResult) -> Cells:
    return {
        "task": unit.name,
        "benchmark": unit.benchmark,
        "metric": unit.metric,
        "filter": unit.filter,
        "kind": unit.kind,
        "rule": unit.rule,
        "higher_is_better": unit.higher_is_better,
        "documents": unit.documents,
        "baseline_documents": unit.baseline_documents,
        "candidate_documents": unit.candidate_documents,
        "full_documents": unit.full_documents,
        "partial": unit.is_partial,
        **_ends("baseline_score", unit.baseline),
        **_ends("candidate_score", unit.candidate),
        **_difference(unit),
        **_ends("relative_drop_percent", unit.relative),
        **_ends("absolute_drop_points", unit.absolute),
        "chance": unit.chance,
        "recovery_percent": recovery.recovery(unit),
        "recovery_above_chance_percent": recovery.recovery_above_chance(unit),
    }


def _ends(name: str, value: Interval | Bounds | None) -> Cells:
    return {
        name: value and value.estimate,
        f"{name}_lower": value and value.lower,
        f"{name}_upper": value and value.upper,
        f"{name}_method": value and value.method,
    }


def _difference(unit: UnitResult) -> Cells:
    ratio = unit.kind == "perplexity"
    return {
        **_ends("difference", None if ratio else unit.difference),
        **_ends("perplexity_ratio", unit.difference if ratio else None),
    }


def _tests(unit: UnitResult) -> Cells:
    return {
        "non_inferior_p": unit.non_inferior_p,
        "tost_p": unit.tost_p,
        **_flips(unit.flips),
        "certify_probability": unit.certify_probability,
        "documents_needed": unit.documents_needed,
        "design_effect": unit.design_effect,
    }


def _flips(flips: FlipCounts | None) -> Cells:
    names = ("lost", "gained", "other_wrong", "churn", "mcnemar_p", "mid_p", "inside_noise")
    found: Mapping[str, Any] = {name: getattr(flips, name, None) for name in names}
    return {**found, **_ends("noise_churn", flips and flips.noise_churn)}


def _remarks(unit: UnitResult) -> Cells:
    name, *sides = unit.beside or (None, None, None)
    gaps = recovery.format_loss(unit)
    macro = unit.macro or (None, None)
    return {
        "macro_baseline": macro[0],
        "macro_candidate": macro[1],
        "beside_filter": name,
        "beside_baseline": sides[0],
        "beside_candidate": sides[1],
        "format_loss_points": gaps and gaps.loss,
        "subjects": len(unit.parts) or None,
        "subjects_clearly_worse": sum(each.clearly_worse for each in unit.parts)
        if unit.parts
        else None,
        "left_out": unit.left_out,
        "not_settled": unit.not_settled,
        "never_supported": unit.never_supported,
        "warnings": "; ".join(unit.warnings),
    }
