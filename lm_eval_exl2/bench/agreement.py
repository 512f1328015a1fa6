"""How alike two runs' answers to the same prompts are, text against text.

The baseline's answer is the reference, so this says nothing of quality: two right answers may share
no word, and a better answer counts as much as a worse one. It is judged by a profile of its own,
`agreement-99`, which compare's rules of evidence decide, and never by an `mlperf-*` one.

ROUGE as in `rouge`, but an answer that is the same scores 100 even where ROUGE sees no words.
BLEU is sacrebleu's (Post 2018) of all answers together, up to 4-grams with brevity penalty. The
first divergence is how many tokens or characters two different answers share from their start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lm_eval_exl2.bench.rouge import KINDS, rouge_by_document
from lm_eval_exl2.compare import verdict
from lm_eval_exl2.compare.policy import Profile
from lm_eval_exl2.compare.statistics import mean_drop, wilson_interval
from lm_eval_exl2.compare.verdict import Drop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PROFILE: Final = Profile("agreement-99", every_task=1.0, drop="absolute")
"""Each ROUGE above 99: less than one point below an answer's agreement with itself."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """The mean of one ROUGE against the baseline's answers."""

    kind: str
    score: float
    """0 to 100."""
    lower: float
    """One-sided 95 % bounds, of compare's statistics."""
    upper: float
    method: str


@dataclass(frozen=True, slots=True)
class Bleu:
    """BLEU of all answers together; the baseline's are the references."""

    score: float
    """0 to 100."""
    brevity_penalty: float
    precisions: tuple[float, ...]
    """Of 1- to 4-grams, in per cent."""
    signature: str
    """How it was counted, in sacrebleu's words."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """What answers that differ share from their start."""

    unit: str
    """"tokens" or "characters"."""
    answers: int
    """Those that differ."""
    first_quartile: float
    median: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two runs' answers are."""

    profile: str
    state: str
    """One of compare's; so are `evidence` and `explanation`."""
    evidence: str
    explanation: str
    documents: int
    rouge: list[Similarity]
    bleu: Bleu
    identical: int
    identical_share: tuple[float, float, float]
    """Estimate and two-sided 95 % interval (Wilson)."""
    divergence: Divergence | None
    """None where no answer differs."""


def compare_answers(
    baseline: Sequence[str],
    candidate: Sequence[str],
    *,
    unit: str,
    pieces: tuple[Sequence[Sequence[Any]], Sequence[Sequence[Any]]] | None = None,
    not_settled: str = "",
) -> Agreement:
    """Compare two runs' answers.

    Args:
        baseline: One answer per document, at least one.
        candidate: The same documents in the same order.
        unit: What `pieces` are, "tokens"; "characters" without them.
        pieces: Both runs' answers as tokens.
        not_settled: Why nothing can be certified, whatever the numbers are.
    """
    same = np.array([one == two for one, two in zip(baseline, candidate, strict=True)])
    rouge = [_similarity(kind, scores) for kind, scores in _rouge(baseline, candidate, same)]
    drops = [_drop(each, not_settled) for each in rouge]
    found = verdict.decide(PROFILE, None, drops)
    low, high = wilson_interval(int(same.sum()), len(same))
    return Agreement(
        profile=PROFILE.name,
        state=found.state,
        evidence=found.evidence,
        explanation=found.explanation,
        documents=len(same),
        rouge=rouge,
        bleu=_bleu(baseline, candidate),
        identical=int(same.sum()),
        identical_share=(float(same.mean()), low, high),
        divergence=_divergence(pieces or (baseline, candidate), same, unit),
    )


def _rouge(
    baseline: Sequence[str], candidate: Sequence[str], same: NDArray[np.bool_]
) -> list[tuple[str, Floats]]:
    """By kind; texts that are the same need no counting."""
    at: list[int] = np.flatnonzero(~same).tolist()
    found = rouge_by_document([(baseline[i],) for i in at], [candidate[i] for i in at])
    scores = {kind: np.full(len(same), 100.0) for kind in KINDS}
    for kind in KINDS:
        scores[kind][at] = found[kind]
    return list(scores.items())


def _similarity(kind: str, scores: Floats) -> Similarity:
    """The mean with compare's bounds, as the drop from an answer's agreement with itself."""
    found = mean_drop(np.full(len(scores), 100.0), scores, span=100.0)
    lower, upper = (float(np.clip(100.0 - each, 0.0, 100.0)) for each in reversed(found.bounds))
    return Similarity(kind, float(scores.mean()), lower, upper, found.method)


def _drop(found: Similarity, not_settled: str) -> Drop:
    return Drop(
        100 - found.score,
        100 - found.upper,
        100 - found.lower,
        name=found.kind,
        reason_not_settled=not_settled,
    )


def _bleu(baseline: Sequence[str], candidate: Sequence[str]) -> Bleu:
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    found = metric.corpus_score(list(candidate), [list(baseline)])
    return Bleu(found.score, found.bp, tuple(found.precisions), metric.get_signature().format())


def _divergence(
    pieces: tuple[Sequence[Sequence[Any]], Sequence[Sequence[Any]]],
    same: NDArray[np.bool_],
    unit: str,
) -> Divergence | None:
    shared = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
        for one, two, is_same in zip(*pieces, same, strict=True)
        if not is_same
    ]
    if not shared:
        return None
    first, median = np.quantile(shared, [0.25, 0.5])
    return Divergence(unit, len(shared), float(first), float(median))
