"""What a score is worth against the baseline's: recovery, above chance, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lm_eval_exl2.compare.render.words import is_known, is_share
from lm_eval_exl2.compare.results import Comparison, UnitResult, Variant


def recovery(unit: UnitResult) -> float | None:
    """Candidate / baseline in per cent.

    None for perplexities, metrics whose lower values are better, and a baseline of 0.
    """
    if unit.kind == "perplexity" or not unit.higher_is_better:
        return None
    return _ratio(unit.candidate.estimate, unit.baseline.estimate)


def recovery_above_chance(unit: UnitResult) -> float | None:
    """(candidate - chance) / (baseline - chance) in per cent.

    None without a chance level, or where the baseline's interval includes it.
    """
    if unit.chance is None or not unit.higher_is_better:
        return None
    if unit.baseline.lower is not None and unit.baseline.lower <= unit.chance:
        return None
    return _ratio(unit.candidate.estimate - unit.chance, unit.baseline.estimate - unit.chance)


def _ratio(candidate: float, baseline: float) -> float | None:
    known = is_known(candidate) and is_known(baseline) and baseline > 0
    return 100 * candidate / baseline if known else None


class FormatLoss(NamedTuple):
    """How much better the other filter scores, in points, on each side."""

    baseline: float
    candidate: float

    @property
    def loss(self) -> float:
        """Points that the candidate loses by its answers' form beyond what the baseline loses."""
        return self.candidate - self.baseline


def format_loss(unit: UnitResult) -> FormatLoss | None:
    """Gaps between the filter beside (such as flexible-extract) and the primary one.

    None where runs are partial: the filter beside has the score of each whole run.
    """
    if unit.beside is None or unit.is_partial or not is_share(unit):
        return None
    _, baseline, candidate = unit.beside
    return FormatLoss(
        100 * (baseline - unit.baseline.estimate), 100 * (candidate - unit.candidate.estimate)
    )


def pareto(comparison: Comparison) -> list[bool | None]:
    """Whether each candidate is on the front of size and average drop.

    It is where no other variant, the baseline included, is at least as small and at least as good
    and better in one of the two. Sizes are bytes if all variants have them, else bits per weight;
    None where a candidate has no size or no average.
    """
    candidates = comparison.candidates
    variants = [comparison.baseline, *(each.variant for each in candidates)]
    drops = [0.0, *(each.average and each.average.relative.estimate for each in candidates)]
    places = list(zip(_sizes(variants), drops, strict=True))
    return [_on_front(place, places) for place in places[1:]]


def _sizes(variants: Sequence[Variant]) -> list[float | None]:
    found: list[float | None] = [each.checkpoint_bytes for each in variants]
    return [each.bits_per_weight for each in variants] if None in found else found


Place = tuple[float | None, float | None]


def _on_front(place: Place, places: Sequence[Place]) -> bool | None:
    size, drop = place
    if not (is_known(size) and is_known(drop)):
        return None
    for other_size, other_drop in places:
        if not (is_known(other_size) and is_known(other_drop)) or (other_size, other_drop) == place:
            continue
        if other_size <= size and other_drop <= drop:
            return False
    return True
