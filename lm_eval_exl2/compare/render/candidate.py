"""One candidate's sections: the verdict and its demands, then the tasks, then what is open."""

from __future__ import annotations

from lm_eval_exl2.compare.render import flips, headline, tasks, words
from lm_eval_exl2.compare.render.blocks import QUESTIONS, Block, Bullets, Section, Table, Text
from lm_eval_exl2.compare.results import CandidateResult, Comparison


def sections(comparison: Comparison, candidate: CandidateResult) -> list[Section]:
    """Everything about one candidate; sections that would be empty are left out."""
    found = [
        Section("Tasks", tasks.scores(comparison, candidate), 3),
        Section("Perplexity", tasks.perplexities(comparison, candidate), 3),
        Section("Scores without pairs", tasks.scores_only(comparison, candidate), 3),
        Section("Changed answers", flips.counts(candidate), 3),
        Section("Parts of groups", flips.parts(comparison, candidate), 3),
        Section("Documents whose answer changed", flips.documents(comparison, candidate), 3),
        Section("Warnings and what was not compared", _left(candidate), 3),
    ]
    return [_verdict(comparison, candidate), *(each for each in found if each.blocks)]


def _verdict(comparison: Comparison, candidate: CandidateResult) -> Section:
    said = headline.candidate_lines(comparison, candidate)
    lines = [f"{question} {line}" for question, line in zip(QUESTIONS, said, strict=True)]
    blocks: list[Block] = [Bullets(lines)]
    if candidate.verdict.demands:
        blocks.append(demands(comparison, candidate))
    blocks.append(Text(_two_answers(candidate)))
    blocks += _average(comparison, candidate)
    return Section(f"{candidate.variant.label}: {candidate.verdict.state}", blocks)


def demands(comparison: Comparison, candidate: CandidateResult) -> Table:
    """What the profile demands, and what the evidence says to each."""
    unit = headline.unit_of(comparison)
    rows = [
        [
            each.name,
            f"< {words.limit(each.accepts, unit)}",
            words.with_unit(words.amount(each.estimate), unit),
            words.with_unit(words.amount(each.lower), unit),
            words.with_unit(words.amount(each.upper), unit),
            "holds" if each.by_estimate else "broken",
            each.evidence,
        ]
        for each in candidate.verdict.demands
    ]
    header = ["Drop of", "Accepted", "Estimate", "At least", "At most", "By estimate", "Evidence"]
    caption = (
        f"Demands of profile {comparison.profile}. At least and at most: one-sided 95 % bounds. "
        "Supported: at most is below what is accepted. Refuted: at least is not."
    )
    return Table(header, rows, caption, left=(0, 5, 6))


def _two_answers(candidate: CandidateResult) -> str:
    found = candidate.verdict
    text = f"By estimate: {found.band}. Evidence: {found.evidence}. State: {found.state}"
    text += f" ({found.explanation})." if found.explanation else "."
    return f"{text} Missing: {', '.join(found.missing)}." if found.missing else text


def _average(comparison: Comparison, candidate: CandidateResult) -> list[Block]:
    average = candidate.average
    if average is None:
        reasons = [f"{unit.name}: {unit.left_out}" for unit in candidate.units if unit.left_out]
        return [Text("There is no average:"), Bullets(reasons)] if reasons else []
    sides = [words.average_score(average, each) for each in (average.baseline, average.candidate)]
    scores = f"{sides[0]} with {comparison.baseline.label}, "
    scores += f"{sides[1]} with {candidate.variant.label}"
    text = f"Average: {scores}, the unweighted mean over {', '.join(average.units)}."
    if not average.left_out:
        return [Text(text)]
    left_out = [f"{name}: {reason}" for name, reason in average.left_out.items()]
    return [Text(f"{text} Left out of it:"), Bullets(left_out)]


def _left(candidate: CandidateResult) -> list[Block]:
    items = list(candidate.warnings)
    items += [f"{unit.name}: {text}" for unit in candidate.units for text in unit.warnings]
    items += [f"not compared: {name}, {why}" for name, why in candidate.not_compared.items()]
    return [Bullets(items)] if items else []
