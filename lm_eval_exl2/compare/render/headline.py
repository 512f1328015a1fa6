"""The first three lines of a report: worse or not, by how much, how sure."""

from __future__ import annotations

from collections.abc import Callable

from lm_eval_exl2.compare import policy, verdict
from lm_eval_exl2.compare.render import words
from lm_eval_exl2.compare.results import (
    Bounds,
    CandidateResult,
    Comparison,
    DemandResult,
    UnitResult,
)

NOT_SUPPORTED = "not statistically supported"
_NOT_WORSE, _OPEN, _WORSE, _NOT_COMPARED = "not worse", "not settled", "worse", "not compared"


def unit_of(comparison: Comparison) -> str:
    """Of the drops that the profile's numbers are about."""
    return "%" if comparison.drop == "relative" else "points"


def is_unsupported(comparison: Comparison, candidate: CandidateResult) -> bool:
    """Whether the estimate decided what the evidence leaves open."""
    found = candidate.verdict
    open_ = found.evidence == verdict.NOT_SETTLED and found.state != policy.CANNOT_COMPARE
    return comparison.decide_by == "estimate" and open_


def part_of(unit: UnitResult) -> str:
    """As "412 of 1,319" where not all documents were compared, else empty."""
    total = max(unit.baseline_documents, unit.candidate_documents, unit.full_documents or 0)
    return f"{unit.documents:,} of {total:,}" if unit.documents < total else ""


def lines(comparison: Comparison) -> list[str]:
    """Three lines over all candidates."""
    if len(comparison.candidates) == 1:
        return candidate_lines(comparison, comparison.candidates[0])
    return [_who_is_worse(comparison), _drops(comparison), _all_bounds(comparison)]


def candidate_lines(comparison: Comparison, candidate: CandidateResult) -> list[str]:
    """Three lines about one candidate."""
    return [
        _is_worse(comparison, candidate) + _parts(candidate),
        _by_how_much(comparison, candidate),
        _how_sure(comparison, candidate),
    ]


def _answer(candidate: CandidateResult) -> str:
    """What is said of a candidate; where the estimate decides, `state` says it."""
    found = candidate.verdict
    if found.state == policy.CANNOT_COMPARE:
        return _NOT_COMPARED
    if found.state == policy.INCONCLUSIVE:
        return _OPEN
    if found.evidence != verdict.NOT_SETTLED:
        return _NOT_WORSE if found.evidence == verdict.SUPPORTED else _WORSE
    return _NOT_WORSE if all(each.by_estimate for each in found.demands) else _WORSE


def _is_worse(comparison: Comparison, candidate: CandidateResult) -> str:
    name, baseline = candidate.variant.label, comparison.baseline.label
    more = f"by more than profile {comparison.profile} accepts"
    sentences = {
        _NOT_WORSE: f"{name} is not worse than {baseline} {more}",
        _OPEN: f"It is not settled whether {name} is worse than {baseline} {more}",
        _WORSE: f"{name} is worse than {baseline} {more}",
        _NOT_COMPARED: f"Whether {name} is worse than {baseline} cannot be said",
    }
    sentence = sentences[_answer(candidate)]
    if is_unsupported(comparison, candidate):
        sentence = f"By the estimate alone, {NOT_SUPPORTED}, {sentence}"
    return f"{sentence}: {candidate.verdict.state}."


def _parts(candidate: CandidateResult) -> str:
    parts = [f"{unit.name} {part_of(unit)}" for unit in candidate.units if part_of(unit)]
    return f" Partial: documents compared are {words.listed(parts)}." if parts else ""


def _by_how_much(comparison: Comparison, candidate: CandidateResult) -> str:
    average = candidate.average
    worst = _worst(comparison, candidate)
    if average is None:
        return f"No task can be averaged{worst and ';' + worst}."
    sides = [words.average_score(average, each) for each in (average.baseline, average.candidate)]
    tasks = words.plural(len(average.units), "task")
    both = (average.relative, average.absolute)
    first, second = both if comparison.drop == "relative" else both[::-1]
    units = ("%", "points") if comparison.drop == "relative" else ("points", "%")
    other = words.with_unit(words.amount(abs(second.estimate)), units[1])
    return (
        f"The average {_change(first, units[0])} ({other}) "
        f"over {tasks}, {' to '.join(sides)}{worst and ';' + worst}."
    )


def _change(bounds: Bounds, unit: str) -> str:
    word = "rises by" if bounds.estimate < 0 else "drops by"
    return f"{word} {words.with_unit(words.amount(abs(bounds.estimate)), unit)}"


def _worst(comparison: Comparison, candidate: CandidateResult) -> str:
    found = [(_drop_of(comparison, unit), unit.name) for unit in candidate.units]
    known = [
        (drop.estimate, name) for drop, name in found if drop and words.is_known(drop.estimate)
    ]
    if len(known) < 2 or max(known)[0] <= 0:
        return ""
    drop, name = max(known)
    return f" the largest drop is that of {name}, {words.amount(drop)} {unit_of(comparison)}"


def _drop_of(comparison: Comparison, unit: UnitResult) -> Bounds | None:
    return unit.relative if comparison.drop == "relative" else unit.absolute


def _how_sure(comparison: Comparison, candidate: CandidateResult) -> str:
    found = candidate.verdict
    if found.state == policy.CANNOT_COMPARE:
        return f"Not at all: {found.explanation}."
    unit = unit_of(comparison)
    decisive = [each for each in found.demands if each.evidence == found.evidence]
    demands = words.listed([_demand(each, unit) for each in decisive or found.demands])
    because = f" {found.explanation}." if found.evidence == verdict.NOT_SETTLED else ""
    return f"{found.evidence.capitalize()}, with one-sided 95 % bounds: {demands}.{because}"


def _demand(demand: DemandResult, unit: str) -> str:
    accepted = f"accepted below {words.limit(demand.accepts, unit)}"
    if not (words.is_known(demand.lower) and words.is_known(demand.upper)):
        return f"{demand.name} has no bounds ({accepted})"
    ends = f"{words.amount(demand.lower)} to {words.amount(demand.upper)} {unit}"
    sure = ", a drop is certain" if demand.lower > 0 else ""
    sure = ", a rise is certain" if demand.upper < 0 else sure
    return f"drop of {demand.name} {ends} ({accepted}{sure})"


def _who_is_worse(comparison: Comparison) -> str:
    titles = {
        _NOT_WORSE: f"Not worse than {comparison.baseline.label} by more than profile "
        f"{comparison.profile} accepts",
        _OPEN: "Not settled",
        _WORSE: "Worse",
        _NOT_COMPARED: "Cannot be said",
    }
    found: list[str] = []
    for answer, title in titles.items():
        named = [
            f"{each.variant.label} ({_state(comparison, each)})"
            for each in comparison.candidates
            if _answer(each) == answer
        ]
        if named:
            found.append(f"{title}: {', '.join(named)}")
    parts = [
        f"{unit.name} {part_of(unit)} ({each.variant.label})"
        for each in comparison.candidates
        for unit in each.units
        if part_of(unit)
    ]
    partial = f" Partial: documents compared are {words.listed(parts)}." if parts else ""
    return f"{'. '.join(found)}.{partial}"


def _state(comparison: Comparison, candidate: CandidateResult) -> str:
    state = candidate.verdict.state
    return f"{state}, {NOT_SUPPORTED}" if is_unsupported(comparison, candidate) else state


def _drops(comparison: Comparison) -> str:
    said = _of_each(comparison, lambda each: words.amount(each.estimate), both=True)
    return f"Average drop: {said}"


def _all_bounds(comparison: Comparison) -> str:
    text = "One-sided 95 % bounds of the average drop: " + _of_each(
        comparison, lambda each: f"{words.amount(each.lower)} to {words.amount(each.upper)}"
    )
    if words.is_known(comparison.accepts):
        accepted = words.limit(comparison.accepts, unit_of(comparison))
        text += f" Profile {comparison.profile} accepts less than {accepted}."
    return text


def _of_each(comparison: Comparison, say: Callable[[Bounds], str], *, both: bool = False) -> str:
    """A clause per candidate, in the profile's unit; `both` adds the other one in brackets."""
    said: list[str] = []
    for each in comparison.candidates:
        average = each.average
        if average is None:
            said.append(f"{each.variant.label} {words.ABSENT}")
            continue
        relative, points = f"{say(average.relative)} %", f"{say(average.absolute)} points"
        first, other = (relative, points) if comparison.drop == "relative" else (points, relative)
        said.append(f"{each.variant.label} {first}" + f" ({other})" * both)
    return f"{'; '.join(said)}."
