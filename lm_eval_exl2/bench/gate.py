"""Scores of two runs, or of one run and a published model -> MLPerf's accuracy gate. Pure.

A candidate passes if each ROUGE is at least `ratio` times the baseline's, and its answers are
neither shorter nor longer than the rule accepts: by the estimate, as MLPerf decides. Scores are
compared as MLPerf's scripts print them, with 4 digits, and without binary rounding: exactly 99 %
is 99 %. Mean lengths are compared exactly.

How alike the two runs' texts are has no part in this; see `agreement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_eval_exl2.bench.intervals import RatioInterval, ratio_interval
from lm_eval_exl2.bench.rouge import mean_score
from lm_eval_exl2.bench.rules import Rule
from lm_eval_exl2.compare import policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


class Measured(NamedTuple):
    """One run's answers in numbers."""

    rouge: dict[str, Floats]
    """By kind, one value per document, 0 to 100."""
    lengths: Integers
    """Per answer, in the rule's unit; may count more answers than those with ROUGE."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One thing that must hold."""

    name: str
    baseline: float
    candidate: float
    ratio: float
    """candidate / baseline."""
    at_least: float
    """Accepted ratios; so is `at_most`."""
    at_most: float | None
    holds: bool
    interval: RatioInterval | None
    """Of the ratio, two-sided 95 %; decides nothing."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate's answer."""

    profile: str
    """"mlperf-99", "mlperf-99.9": by the ratio."""
    rule: str
    is_published: bool
    """Whether published scores stand for the baseline."""
    state: str
    """One of compare's."""
    explanation: str
    documents: int
    demands: list[Demand]


def judge(
    rule: Rule,
    ratio: Fraction,
    candidate: Measured,
    baseline: Measured | None,
    *,
    unit: str,
    not_settled: Sequence[str] = (),
) -> Gate:
    """Hold a candidate against a baseline.

    Args:
        rule: What is demanded.
        ratio: The share of each of the baseline's ROUGEs that must be reached.
        candidate: What is judged.
        baseline: A run over the same documents in the same order; not needed where the rule has
            published scores.
        unit: What lengths are counted in.
        not_settled: Why nothing can be certified, whatever the numbers are.
    """
    documents = len(candidate.rouge[rule.kinds[0]])
    reason = _not_comparable(rule, candidate, baseline, unit)
    if reason:
        return cannot_judge(rule, ratio, reason, documents=documents)
    demands = [
        *(_rouge(kind, rule, ratio, candidate, baseline) for kind in rule.kinds),
        _length(rule, candidate, baseline, unit),
    ]
    also = [f"MLPerf also demands {rule.also}, which is not judged here"] if rule.also else []
    state, explanation = _decide(demands, [*not_settled, *also])
    return Gate(
        _profile(ratio), rule.name, rule.is_published, state, explanation, documents, demands
    )


def cannot_judge(rule: Rule, ratio: Fraction, reason: str, *, documents: int) -> Gate:
    """A gate that cannot be applied."""
    said = f"cannot compare: {reason}"
    return Gate(
        _profile(ratio), rule.name, rule.is_published, policy.CANNOT_COMPARE, said, documents, []
    )


def _profile(ratio: Fraction) -> str:
    return f"mlperf-{float(100 * ratio):g}"


def _not_comparable(rule: Rule, candidate: Measured, baseline: Measured | None, unit: str) -> str:
    for expected, found, what in (
        (rule.documents, len(candidate.rouge[rule.kinds[0]]), "documents with ROUGE"),
        (rule.length_documents, len(candidate.lengths), "answers whose length counts"),
    ):
        if expected is not None and expected != found:
            return (
                f"the published numbers of {rule.name} are of {expected:,} {what}, "
                f"this run has {found:,}"
            )
    for kind in rule.kinds:
        if not _reference(kind, rule, baseline):
            return f"{kind} of the baseline is 0, so no share of it can be demanded"
    if baseline is not None and rule.length is None and not baseline.lengths.any():
        return f"the baseline's answers have no {unit}"
    return ""


def _reference(kind: str, rule: Rule, baseline: Measured | None) -> Fraction:
    if kind in rule.rouge:
        return rule.rouge[kind]
    return Fraction(0) if baseline is None else _printed(baseline.rouge[kind])


def _printed(scores: Floats) -> Fraction:
    """The mean as it is printed, as an exact number."""
    return Fraction(str(mean_score(scores)))


def _rouge(
    kind: str, rule: Rule, ratio: Fraction, candidate: Measured, baseline: Measured | None
) -> Demand:
    scores, reference = candidate.rouge[kind], _reference(kind, rule, baseline)
    beside = None if rule.is_published or baseline is None else baseline.rouge[kind]
    return _demand(kind, _printed(scores), reference, (ratio, None), (scores, beside))


def _length(rule: Rule, candidate: Measured, baseline: Measured | None, unit: str) -> Demand:
    reference = rule.length
    beside = None
    if reference is None and baseline is not None:
        reference, beside = _mean(baseline.lengths), baseline.lengths.astype(np.float64)
    return _demand(
        f"{unit} per answer",
        _mean(candidate.lengths),
        reference or Fraction(0),
        (rule.at_least, rule.at_most),
        (candidate.lengths.astype(np.float64), beside),
    )


def _mean(lengths: Integers) -> Fraction:
    return Fraction(int(lengths.sum()), len(lengths))


def _demand(
    name: str,
    value: Fraction,
    reference: Fraction,
    limits: tuple[Fraction, Fraction | None],
    by_document: tuple[Floats, Floats | None],
) -> Demand:
    least, most = limits
    found, beside = by_document
    if beside is None:
        beside = np.full(len(found), float(reference))
    return Demand(
        name=name,
        baseline=float(reference),
        candidate=float(value),
        ratio=float(value / reference),
        at_least=float(least),
        at_most=None if most is None else float(most),
        holds=value >= least * reference and (most is None or value <= most * reference),
        interval=ratio_interval(found, beside),
    )


def _decide(demands: Sequence[Demand], not_settled: Sequence[str]) -> tuple[str, str]:
    broken = [_say(each) for each in demands if not each.holds]
    if broken:
        return policy.DO_NOT_SHIP, "; ".join(broken)
    if not_settled:
        said = "everything that was judged holds, but " + "; ".join(not_settled)
        return policy.INCONCLUSIVE, said
    return policy.SHIP, "every demand holds by the estimate, which is how MLPerf decides"


def _say(demand: Demand) -> str:
    limits = [("at least", demand.at_least), ("at most", demand.at_most)]
    demanded = " and ".join(
        f"{word} {share * demand.baseline:.6g} ({100 * share:g} %)"
        for word, share in limits
        if share is not None
    )
    return f"{demand.name}: found {demand.candidate:.6g}, demanded {demanded}"
