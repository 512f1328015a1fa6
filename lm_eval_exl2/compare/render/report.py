"""A comparison -> everything a report says, as blocks: the overview and what is said once."""

from __future__ import annotations

from lm_eval_exl2.compare.render import candidate, headline, method, words
from lm_eval_exl2.compare.render.blocks import Block, Bullets, Report, Section, Table, Text
from lm_eval_exl2.compare.render.recovery import pareto
from lm_eval_exl2.compare.results import CandidateResult, Comparison


def build(comparison: Comparison) -> Report:
    """Say everything that a comparison found, in the order of reading."""
    details = [
        section
        for each in comparison.candidates
        for section in candidate.sections(comparison, each)
    ]
    return Report(
        lines=headline.lines(comparison),
        overview=[*_settings(comparison), _matrix_section(comparison), *_steps(comparison)],
        details=details,
        method=method.section(comparison),
    )


def _settings(comparison: Comparison) -> list[Section]:
    if not comparison.unequal_settings:
        return []
    labels = [each.variant.label for each in comparison.candidates]
    rows = [
        [name, *(words.ABSENT if value == "-" else value for value in values)]
        for name, values in comparison.unequal_settings
    ]
    header = ["Setting", comparison.baseline.label, *labels]
    table = Table(header, rows, left=tuple(range(len(header))))
    text = Text("These differ between the runs, apart from the checkpoint itself.")
    return [Section("Unequal settings", [text, table])]


def _matrix_section(comparison: Comparison) -> Section:
    blocks: list[Block] = [matrix(comparison)]
    if len({tuple(each.average.units) for each in comparison.candidates if each.average}) > 1:
        blocks.append(Text("The averages are over different tasks and are not comparable."))
    if comparison.notes:
        blocks.append(Bullets(list(comparison.notes)))
    return Section("Decision matrix", blocks)


def _steps(comparison: Comparison) -> list[Section]:
    rows = [
        [
            each.larger,
            each.smaller,
            words.count(len(each.average.units)) if each.average else words.ABSENT,
            words.drop(each.average and each.average.relative, "%"),
            words.drop(each.average and each.average.absolute, "points"),
            each.state,
        ]
        for each in comparison.steps
    ]
    if not rows:
        return []
    header = ["From", "To", "Tasks", "Average drop", "In points", "Verdict on the step"]
    caption = "Each candidate against the next larger one, by the same profile."
    return [
        Section("Step by step", [Table(header, rows, caption, left=(0, 1, 5), states=5)]),
    ]


def matrix(comparison: Comparison) -> Table:
    """Variant, size, bits per weight, tasks, average drop, verdict; the baseline first."""
    fronts = [_FRONT[each] for each in pareto(comparison)]
    pairs = zip(comparison.candidates, fronts, strict=True)
    baseline = comparison.baseline
    first = [baseline.label, words.size(baseline.checkpoint_bytes)]
    first += [words.bits(baseline.bits_per_weight), *[words.ABSENT] * 3, "baseline", words.ABSENT]
    return Table(
        [
            *("Variant", "Size", "Bits per weight", "Tasks", "Average drop"),
            *("In points", "Verdict", "Pareto"),
        ],
        [first, *(_matrix_row(comparison, each, front) for each, front in pairs)],
        caption="Average drop: estimate [one-sided 95 % bounds], of the unweighted mean of the "
        "tasks' scores. Pareto: no other variant is smaller and better.",
        left=(0, 6, 7),
        states=6,
    )


_FRONT = {True: "yes", False: "no", None: words.ABSENT}


def _matrix_row(comparison: Comparison, each: CandidateResult, front: str) -> list[str]:
    variant, average = each.variant, each.average
    state = each.verdict.state
    if headline.is_unsupported(comparison, each):
        state += f", {headline.NOT_SUPPORTED}"
    return [
        variant.label,
        words.size(variant.checkpoint_bytes),
        words.bits(variant.bits_per_weight),
        words.count(len(average.units)) if average else words.ABSENT,
        words.drop(average and average.relative, "%"),
        words.drop(average and average.absolute, "points"),
        state,
        front,
    ]
