"""What a comparison found: plain records that become JSON and back, so a report needs no rerun.

Scores are as the harness has them (0 to 1, or a perplexity). Drops are positive where the candidate
is worse: `relative` ones in per cent of the baseline's score, `absolute` ones in percentage points.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
"""Raised when a field changes its meaning."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided 95 % interval."""

    estimate: float
    lower: float | None
    upper: float | None
    method: str
    """Name of the interval, such as "Wilson" or "Tango score"."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """An estimate with its one-sided 95 % bounds: L and U of the verdict."""

    estimate: float
    lower: float | None
    upper: float | None
    method: str


@dataclass(frozen=True, slots=True)
class FlipCounts:
    """Answers that changed; shares are of the compared documents."""

    lost: int
    """Right to wrong."""
    gained: int
    """Wrong to right."""
    other_wrong: int | None
    """Wrong to another wrong answer; None where answers are not known."""
    churn: float
    mcnemar_p: float
    """Exact, two-sided, on lost and gained."""
    mid_p: float
    too_few: bool
    """Fewer than 6 lost and gained together: no outcome could have reached p < .05."""
    noise_churn: Interval | None = None
    """Of the same checkpoint run twice, if that was given."""
    inside_noise: int | None = None
    """Of lost and gained: those whose margin noise alone can turn (multiple choice only)."""


@dataclass(frozen=True, slots=True)
class Flip:
    """One document whose answer changed, for display."""

    task: str
    kind: str
    """"lost", "gained" or "other wrong"."""
    doc_id: int
    question: str
    target: str
    baseline: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Part:
    """One task of a group, such as a subject of MMLU."""

    name: str
    documents: int
    baseline: float
    candidate: float
    lost: int | None
    gained: int | None
    p: float | None
    """Exact McNemar; None where values are not right or wrong."""
    clearly_worse: bool
    """Holm-adjusted over the group's parts at 5 %, one-sided."""


@dataclass(frozen=True, slots=True)
class UnitResult:
    """A task, or a group that counts once."""

    name: str
    benchmark: str
    metric: str
    filter: str
    kind: str
    """"binary", "graded" (values between), "corpus" (BLEU, F1), "perplexity" or "unpaired"."""
    rule: str
    """"mean", "micro" or "macro"."""
    higher_is_better: bool
    documents: int
    """Compared."""
    baseline_documents: int
    candidate_documents: int
    full_documents: int | None
    """In the whole data set."""
    baseline: Interval
    candidate: Interval
    difference: Interval
    """candidate - baseline; for a perplexity the ratio candidate / baseline."""
    relative: Bounds | None
    absolute: Bounds | None
    non_inferior_p: float | None = None
    """One-sided, at the margin that the profile accepts."""
    tost_p: float | None = None
    """Equivalence at the same margin, both ways."""
    flips: FlipCounts | None = None
    chance: float | None = None
    macro: tuple[float, float] | None = None
    """Of a micro group: the mean over tasks, baseline and candidate."""
    beside: tuple[str, float, float] | None = None
    """Another filter's name and scores, such as GSM8K's flexible-extract."""
    parts: list[Part] = field(default_factory=list[Part])
    left_out: str = ""
    """Why it is not part of the average; empty if it is."""
    not_settled: str = ""
    """Why its evidence is "not settled" whatever it says (limited runs)."""
    never_supported: str = ""
    """Why its evidence can refute, but not support (quick runs)."""
    certify_probability: float | None = None
    """How likely a lossless candidate would be certified at this size and flip rate."""
    documents_needed: int | None = None
    """How many would be certified with probability 80 %."""
    design_effect: float | None = None
    warnings: list[str] = field(default_factory=list[str])

    @property
    def is_partial(self) -> bool:
        """Whether a run has documents that the other one lacks."""
        return not self.documents == self.baseline_documents == self.candidate_documents


@dataclass(frozen=True, slots=True)
class ScoreOnly:
    """Two written scores that no pairs stand behind: no interval, and no part in the verdict."""

    name: str
    metric: str
    baseline: float
    candidate: float
    published_error: float | None
    """Mean absolute error of such an estimate, as published; None where nobody says."""
    reason: str


@dataclass(frozen=True, slots=True)
class Average:
    """The unweighted mean of the primary scores."""

    units: list[str]
    baseline: float
    candidate: float
    relative: Bounds
    absolute: Bounds
    left_out: dict[str, str]
    """By unit: why it does not count."""


@dataclass(frozen=True, slots=True)
class DemandResult:
    """One demand of the profile."""

    name: str
    accepts: float
    estimate: float
    lower: float | None
    upper: float | None
    by_estimate: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class VerdictResult:
    """The answer for one candidate."""

    state: str
    band: str
    """By the point estimate alone."""
    evidence: str
    """"supported", "refuted" or "not settled"."""
    explanation: str
    demands: list[DemandResult]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Variant:
    """One run's model."""

    label: str
    folder: str
    times: list[str]
    bits_per_weight: float | None
    checkpoint_bytes: int | None
    parameters: int | None


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One candidate against the baseline."""

    variant: Variant
    units: list[UnitResult]
    average: Average | None
    verdict: VerdictResult
    flips: list[Flip]
    """Up to the number that was asked for, per unit."""
    not_compared: dict[str, str]
    """By task: why not."""
    warnings: list[str]
    scores_only: list[ScoreOnly] = field(default_factory=list[ScoreOnly])


@dataclass(frozen=True, slots=True)
class Step:
    """A candidate against the next larger one."""

    larger: str
    """Labels."""
    smaller: str
    average: Average | None
    state: str
    """By the same profile."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a report shows."""

    baseline: Variant
    candidates: list[CandidateResult]
    """In the order they are reported: most bits per weight first."""
    profile: str
    drop: str
    """"relative" or "absolute": what the profile's numbers are."""
    decide_by: str
    accepts: float | None
    unequal_settings: list[tuple[str, list[str]]]
    """Name and values, baseline first, then candidates in their order."""
    notes: list[str]
    lm_eval_exl2_version: str
    format: int = FORMAT
    steps: list[Step] = field(default_factory=list[Step])
    """From each candidate to the next smaller one, if that was asked for."""


def to_json(comparison: Comparison) -> dict[str, Any]:
    """As plain dicts, lists, numbers and texts."""
    return asdict(comparison)
