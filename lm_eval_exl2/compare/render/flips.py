"""Changed answers: counts by task, parts of groups, and the documents themselves."""

from __future__ import annotations

from lm_eval_exl2.compare.render import words
from lm_eval_exl2.compare.render.blocks import Block, Folded, Table, Text
from lm_eval_exl2.compare.results import CandidateResult, Comparison, FlipCounts, Part, UnitResult

TOO_FEW = "fewer than 6 lost and gained: cannot reach p < .05"
FEW_DOCUMENTS = 50
"""A part with fewer documents says little by itself."""


def counts(candidate: CandidateResult) -> list[Block]:
    """How many answers changed, by task, with the tests of lost against gained."""
    found = [(unit, unit.flips) for unit in candidate.units if unit.flips is not None]
    if not found:
        return []
    header = ["Task", "Documents", "Lost", "Gained", "Other wrong", "Churn", "McNemar p", "mid-p"]
    rows = [[unit.name, words.count(unit.documents), *_counts(flips)] for unit, flips in found]
    caption = (
        "Lost: right to wrong. Gained: wrong to right. Other wrong: wrong to another wrong answer. "
        "Churn: all of them, as a share of the documents. McNemar: exact, two-sided."
    )
    blocks: list[Block] = [Table([*header, "Remark"], rows, caption, left=(0, 8))]
    noisy = [(unit, flips) for unit, flips in found if flips.noise_churn is not None]
    if noisy:
        blocks.append(_noise([(unit.name, flips) for unit, flips in noisy]))
    return blocks


def _counts(flips: FlipCounts) -> list[str]:
    numbers = [words.count(each) for each in (flips.lost, flips.gained, flips.other_wrong)]
    tests = [words.p_value(flips.mcnemar_p), words.p_value(flips.mid_p)]
    remark = TOO_FEW if flips.too_few else ""
    return [*numbers, words.share(flips.churn, 2), *tests, remark]


def _noise(found: list[tuple[str, FlipCounts]]) -> Table:
    rows: list[list[str]] = []
    for name, flips in found:
        noise = flips.noise_churn
        if noise is None:
            continue
        ends = [words.share(each, 2) for each in (noise.lower, noise.upper)]
        excess = words.share(flips.churn - noise.estimate, 2)
        interval = words.bracketed(words.share(noise.estimate, 2), ends)
        rows.append([name, words.share(flips.churn, 2), interval, excess, _inside(flips)])
    header = ["Task", "Churn", "Noise churn", "Excess churn", "Lost and gained inside the noise"]
    return Table(
        header,
        rows,
        "Noise: the same checkpoint run twice, with a 95 % interval. Inside the noise: the "
        "baseline's margin is one that noise alone can turn.",
    )


def _inside(flips: FlipCounts) -> str:
    if flips.inside_noise is None:
        return words.ABSENT
    return f"{flips.inside_noise:,} of {flips.lost + flips.gained:,}"


def parts_word(unit: UnitResult) -> str:
    """What the parts of a group are called."""
    return "subjects" if unit.benchmark.startswith("mmlu") else "tasks"


def parts_sentence(unit: UnitResult) -> str:
    """As "3 of 57 subjects clearly worse"."""
    worse = sum(part.clearly_worse for part in unit.parts)
    return f"{worse} of {len(unit.parts)} {parts_word(unit)} clearly worse"


def parts(comparison: Comparison, candidate: CandidateResult) -> list[Block]:
    """The tasks of groups: which are clearly worse, then all of them, folded."""
    blocks: list[Block] = []
    for unit in candidate.units:
        if not unit.parts:
            continue
        worse = [part for part in unit.parts if part.clearly_worse]
        small = sum(part.documents < FEW_DOCUMENTS for part in unit.parts)
        text = f"{unit.name}: {parts_sentence(unit)}"
        text += f" ({', '.join(part.name for part in worse)})." if worse else "."
        if small:
            text += f" {small} have fewer than {FEW_DOCUMENTS} documents and say little."
        labels = [comparison.baseline.label, candidate.variant.label]
        table = Table(
            [
                parts_word(unit)[:-1].capitalize(),
                "Documents",
                *labels,
                "Points",
                "Lost",
                "Gained",
                "p",
                "Clearly worse",
            ],
            [_part(part) for part in unit.parts],
            "p: exact McNemar, not adjusted. Clearly worse: one-sided, Holm-adjusted at 5 %.",
            left=(0, 8),
        )
        blocks += [
            Text(text),
            Folded(f"All {len(unit.parts)} {parts_word(unit)} of {unit.name}", [table]),
        ]
    return blocks


def _part(part: Part) -> list[str]:
    scores = [words.share(each) for each in (part.baseline, part.candidate)]
    points = words.number(100 * (part.candidate - part.baseline), 1, sign=True)
    changed = [words.count(part.lost), words.count(part.gained), words.p_value(part.p)]
    worse = "yes" if part.clearly_worse else ""
    return [part.name, words.count(part.documents), *scores, points, *changed, worse]


def documents(comparison: Comparison, candidate: CandidateResult) -> list[Block]:
    """The documents whose answer changed, folded by task."""
    blocks: list[Block] = []
    labels = [comparison.baseline.label, candidate.variant.label]
    for name in dict.fromkeys(flip.task for flip in candidate.flips):
        found = [flip for flip in candidate.flips if flip.task == name]
        rows = [
            [
                *(flip.kind, str(flip.doc_id)),
                *map(words.shorten, (flip.question, flip.target, flip.baseline, flip.candidate)),
            ]
            for flip in found
        ]
        header = ["Change", "doc_id", "Question", "Target", *labels]
        table = Table(header, rows, left=tuple(range(len(header))))
        blocks.append(Folded(f"{name}: {words.plural(len(found), 'document')} shown", [table]))
    if blocks:
        blocks.insert(0, Text("As the harness stored them, cut to 300 characters."))
    return blocks
