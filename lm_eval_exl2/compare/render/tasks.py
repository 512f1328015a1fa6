"""Tables of a candidate's tasks: scores, drops, recovery, certainty, and perplexities apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lm_eval_exl2.compare.render import headline, recovery, words
from lm_eval_exl2.compare.render.blocks import Block, Bullets, Table
from lm_eval_exl2.compare.results import CandidateResult, Comparison, UnitResult

Row = Callable[[UnitResult], list[str]]


def scores(comparison: Comparison, candidate: CandidateResult) -> list[Block]:
    """Tables of everything that is no perplexity; those without a row are left out."""
    units = [unit for unit in candidate.units if unit.kind != "perplexity"]
    if not units:
        return []
    labels = [comparison.baseline.label, candidate.variant.label]
    blocks: list[Block] = [_scores(units, labels), _drops(units), _recoveries(units, labels)]
    blocks.append(_certainty(units))
    grouped = [unit for unit in units if unit.macro is not None]
    beside = [unit for unit in units if unit.beside is not None]
    blocks += [_macro(grouped, labels)] if grouped else []
    blocks += [_format(beside, labels)] if beside else []
    reasons = [f"{unit.name} {_limits(unit)}" for unit in units if _limits(unit)]
    blocks += [Bullets(reasons)] if reasons else []
    return blocks


def _limits(unit: UnitResult) -> str:
    """What the evidence of a task cannot say, whatever its numbers are."""
    if unit.not_settled:
        return f"cannot settle anything: {unit.not_settled}"
    return f"cannot support, only refute: {unit.never_supported}" if unit.never_supported else ""


def _table(
    units: Sequence[UnitResult], row: Row, header: list[str], caption: str, *, words_in: int = 0
) -> Table:
    """One row per task; the first columns, up to `words_in`, hold words."""
    rows = [[unit.name, *row(unit)] for unit in units]
    return Table(["Task", *header], rows, caption, left=tuple(range(words_in + 1)))


def _scores(units: Sequence[UnitResult], labels: list[str]) -> Table:
    def row(unit: UnitResult) -> list[str]:
        sides = [words.score_interval(unit, side) for side in (unit.baseline, unit.candidate)]
        return [_metric(unit), _documents(unit), *sides, words.difference(unit)]

    header = ["Metric", "Documents", *labels, "Difference"]
    caption = "Brackets: 95 % intervals; that of the difference is paired."
    return _table(units, row, header, caption, words_in=1)


def _metric(unit: UnitResult) -> str:
    parts = [unit.metric]
    if unit.filter not in ("", "none"):
        parts.append(unit.filter)
    if unit.rule != "mean":
        parts.append(f"{unit.rule} average")
    if not unit.higher_is_better:
        parts.append("lower is better")
    return ", ".join(parts)


def _documents(unit: UnitResult) -> str:
    return headline.part_of(unit) or words.count(unit.documents)


def _drops(units: Sequence[UnitResult]) -> Table:
    def row(unit: UnitResult) -> list[str]:
        drops = [words.drop(unit.relative, "%"), words.drop(unit.absolute, "points")]
        return [*drops, words.p_value(unit.non_inferior_p), words.p_value(unit.tost_p)]

    header = ["Relative drop", "Absolute drop", "Non-inferiority p", "TOST p"]
    caption = (
        "Brackets: one-sided 95 % bounds, so that the pair is a 90 % interval. The p values are at "
        "the margin that the profile accepts; TOST asks for equivalence, both ways."
    )
    return _table(units, row, header, caption)


def _recoveries(units: Sequence[UnitResult], labels: list[str]) -> Table:
    def row(unit: UnitResult) -> list[str]:
        above = [
            words.with_unit(words.number(_above_chance(unit, each), 1, sign=True), "points")
            for each in (unit.baseline.estimate, unit.candidate.estimate)
        ]
        fair = words.with_unit(words.number(recovery.recovery_above_chance(unit), 1), "%")
        return [_recovery(unit), words.share(unit.chance), *above, fair]

    header = ["Recovery", "Chance", *(f"{label} above chance" for label in labels)]
    caption = (
        "Recovery: the candidate's score in per cent of the baseline's, with the one-sided 95 % "
        "bounds of the relative drop; above chance: the same of what is above it."
    )
    return _table(units, row, [*header, "Recovery above chance"], caption)


def _recovery(unit: UnitResult) -> str:
    shown = words.with_unit(words.number(recovery.recovery(unit), 1), "%")
    drop = unit.relative
    if shown == words.ABSENT or drop is None:
        return shown
    ends = [words.number(words.left_of(100, each), 1) for each in (drop.upper, drop.lower)]
    return words.bracketed(shown, ends)


def _above_chance(unit: UnitResult, score: float) -> float | None:
    return None if unit.chance is None else 100 * (score - unit.chance)


def _certainty(units: Sequence[UnitResult]) -> Table:
    def row(unit: UnitResult) -> list[str]:
        certified = words.share(unit.certify_probability, 0)
        return [_documents(unit), certified, _needed(unit), words.amount(unit.design_effect)]

    header = ["Documents", "Lossless would be certified", "Documents needed", "Design effect"]
    caption = (
        "How likely a lossless candidate would be certified at this size and flip rate, and how "
        "many documents would certify it with probability 80 %. Design effect: by how much "
        "clusters of documents widen the variance."
    )
    return _table(units, row, header, caption)


def _needed(unit: UnitResult) -> str:
    needed, full = unit.documents_needed, unit.full_documents
    if needed is None or full is None or needed <= full:
        return words.count(needed)
    return f"{needed:,}: no full set of this task can ({full:,})"


def _macro(units: Sequence[UnitResult], labels: list[str]) -> Table:
    def row(unit: UnitResult) -> list[str]:
        estimates = unit.baseline.estimate, unit.candidate.estimate
        sides = [words.score(unit, each) for each in (*estimates, *(unit.macro or ()))]
        return [unit.rule, *sides]

    header = ["Counts as", *(f"micro, {label}" for label in labels)]
    header += [f"macro, {label}" for label in labels]
    caption = "Micro: the mean over documents. Macro: the mean over the group's tasks."
    return _table(units, row, header, caption, words_in=1)


def _format(units: Sequence[UnitResult], labels: list[str]) -> Table:
    def row(unit: UnitResult) -> list[str]:
        name, *sides = unit.beside or ("", None, None)
        found = recovery.format_loss(unit)
        gaps = (found.baseline, found.candidate, found.loss) if found else (None, None, None)
        points = [words.with_unit(words.amount(each, sign=True), "points") for each in gaps]
        return [
            f"{name} beside {unit.filter}",
            *(words.score(unit, each) for each in sides),
            *points,
        ]

    header = ["Filter", *labels, *(f"gap, {label}" for label in labels), "Format loss"]
    caption = (
        "Gap: points that the filter beside scores more. Format loss: how much larger the gap is "
        "with the candidate, which then gives right answers in the wrong form."
    )
    return _table(units, row, header, caption, words_in=1)


def perplexities(comparison: Comparison, candidate: CandidateResult) -> list[Block]:
    """Ratios of perplexities, which never count for the average."""
    units = [unit for unit in candidate.units if unit.kind == "perplexity"]
    if not units:
        return []

    def row(unit: UnitResult) -> list[str]:
        sides = [words.score_interval(unit, side) for side in (unit.baseline, unit.candidate)]
        ratio = unit.difference
        ends = [words.number(each, 4) for each in (ratio.lower, ratio.upper)]
        more = words.with_unit(words.amount(100 * (ratio.estimate - 1), sign=True), "%")
        first = words.number(ratio.estimate, 4)
        return [_metric(unit), _documents(unit), *sides, words.bracketed(first, ends), more]

    labels = [comparison.baseline.label, candidate.variant.label]
    header = ["Metric", "Documents or windows", *labels, "Ratio", "Change"]
    caption = "Ratio: candidate / baseline with its 95 % interval; no part of the average."
    return [_table(units, row, header, caption, words_in=1)]


def scores_only(comparison: Comparison, candidate: CandidateResult) -> list[Block]:
    """Scores that no pairs stand behind, as the results files have them."""
    if not candidate.scores_only:
        return []
    rows = [
        [
            each.name,
            each.metric,
            *(words.number(score, 4) for score in (each.baseline, each.candidate)),
            words.number(each.candidate - each.baseline, 4, sign=True),
            words.number(each.published_error, 4),
        ]
        for each in candidate.scores_only
    ]
    labels = [comparison.baseline.label, candidate.variant.label]
    header = ["Task", "Metric", *labels, "Difference", "Published error of each"]
    caption = (
        "No known rule gives these scores from their samples, so no documents are paired: there is "
        "no interval, and they have no part in the verdict."
    )
    reasons = [each.reason for each in candidate.scores_only]
    return [Table(header, rows, caption, left=(0, 1)), Bullets(reasons)]
