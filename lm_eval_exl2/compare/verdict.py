"""Drops and their bounds -> a state, by estimate and by evidence. Pure.

Each demand of a profile (the average, and every cap) is judged by itself: with L and U the
one-sided 95 % bounds of the drop and G the worst drop that is accepted, U < G supports it, L >= G
refutes it, anything else leaves it open. All must hold (intersection-union), so no level is
adjusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm_eval_exl2.compare import policy
from lm_eval_exl2.compare.policy import Profile, State

SUPPORTED, REFUTED, NOT_SETTLED = "supported", "refuted", "not settled"


@dataclass(frozen=True, slots=True)
class Drop:
    """How much a score fell, in per cent or percentage points; negative: it rose."""

    estimate: float
    lower: float | None
    """One-sided 95 % bound; None where there is no paired evidence."""
    upper: float | None
    benchmark: str = ""
    name: str = "average"
    reason_not_settled: str = ""
    """Why the evidence cannot settle anything, whatever the bounds are (limited runs)."""
    never_supported: str = ""
    """Why the evidence can refute, but not support (quick runs)."""
    hint: str = ""
    """What would settle it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One demand and what became of it."""

    name: str
    accepts: float
    drop: Drop
    by_estimate: bool
    """Whether the point estimate is below what is accepted."""
    evidence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer."""

    state: State
    band: State
    """By estimate: the band of the average, or "do not ship" where a cap is broken."""
    evidence: str
    demands: list[Judged]
    explanation: str
    missing: list[str]
    """Benchmarks the profile demands that were not measured on both sides."""


def decide(
    profile: Profile,
    average: Drop | None,
    tasks: Sequence[Drop],
    absent: Sequence[str] = (),
) -> Verdict:
    """Judge a candidate.

    Args:
        profile: What is demanded.
        average: Drop of the average; None where no task can be averaged.
        tasks: Drops by task.
        absent: Tasks that are demanded and were not run.
    """
    demands, missing = _demands(profile, average, tasks)
    missing += absent
    if missing or not demands:
        needed = ", ".join(missing) or "a task with a score"
        text = f"cannot compare: {needed} is missing, which profile {profile.name} demands"
        return Verdict(
            policy.CANNOT_COMPARE, policy.CANNOT_COMPARE, NOT_SETTLED, demands, text, missing
        )
    band = _band_by_estimate(profile, average, demands)
    evidence = _together([each.evidence for each in demands])
    if profile.decide_by == "estimate":
        return Verdict(band, band, evidence, demands, _by_estimate(profile, evidence), [])
    if evidence == SUPPORTED:
        return Verdict(band, band, evidence, demands, "the evidence supports it", [])
    if evidence == REFUTED:
        state = band if _fails(profile, band) else _first_failing(profile)
        broken = ", ".join(each.name for each in demands if each.evidence == REFUTED)
        return Verdict(state, band, evidence, demands, f"refuted: {broken}", [])
    return Verdict(policy.INCONCLUSIVE, band, evidence, demands, _open(band, demands, profile), [])


def _demands(
    profile: Profile, average: Drop | None, tasks: Sequence[Drop]
) -> tuple[list[Judged], list[str]]:
    judged: list[Judged] = []
    missing: list[str] = []
    if profile.accepts is not None:
        if average is None:
            missing.append("an average")
        else:
            judged.append(_judge("average", profile.accepts, average))
    caps: Mapping[str, float] = {**profile.caps_if_present, **profile.caps}
    for benchmark, cap in caps.items():
        found = [drop for drop in tasks if drop.benchmark == benchmark]
        judged += [_judge(drop.name, cap, drop) for drop in found]
        if not found and benchmark in profile.caps:
            missing.append(benchmark)
    if profile.every_task is not None:
        judged += [_judge(drop.name, profile.every_task, drop) for drop in tasks]
    return judged, missing


def _judge(name: str, accepts: float, drop: Drop) -> Judged:
    if drop.lower is None or drop.upper is None or drop.reason_not_settled:
        evidence = NOT_SETTLED
    elif drop.upper < accepts:
        evidence = NOT_SETTLED if drop.never_supported else SUPPORTED
    else:
        evidence = REFUTED if drop.lower >= accepts else NOT_SETTLED
    return Judged(name, accepts, drop, drop.estimate < accepts, evidence)


def _band_by_estimate(profile: Profile, average: Drop | None, demands: Sequence[Judged]) -> State:
    caps_broken = any(not each.by_estimate for each in demands if each.name != "average")
    if caps_broken:
        return policy.DO_NOT_SHIP
    if profile.bands and average is not None:
        return profile.band(average.estimate).state
    return policy.SHIP


def _together(evidence: Sequence[str]) -> str:
    if REFUTED in evidence:
        return REFUTED
    return SUPPORTED if set(evidence) == {SUPPORTED} else NOT_SETTLED


def _fails(profile: Profile, state: State) -> bool:
    return state == policy.DO_NOT_SHIP or state in _failing(profile)


def _failing(profile: Profile) -> list[State]:
    """States of the bands that begin at or above what is accepted, the best first."""
    if profile.accepts is None:
        return [policy.DO_NOT_SHIP]
    begin = [0.0, *(band.below for band in profile.bands if band.below is not None)]
    pairs = zip(begin, profile.bands, strict=True)
    return [band.state for edge, band in pairs if edge >= profile.accepts] or [policy.DO_NOT_SHIP]


def _first_failing(profile: Profile) -> State:
    return _failing(profile)[0]


def _by_estimate(profile: Profile, evidence: str) -> str:
    how = f"profile {profile.name} decides by the estimate"
    return how if evidence == SUPPORTED else f"{how}: not statistically supported"


def _open(band: State, demands: Sequence[Judged], profile: Profile) -> str:
    unit = "%" if profile.drop == "relative" else "points"
    parts: list[str] = []
    for each in demands:
        if each.evidence == SUPPORTED:
            continue
        drop = each.drop
        text = f"{each.name}: best estimate {drop.estimate:.2g} {unit}"
        text += f" ({band})" if each.name == "average" else ""
        reason = drop.reason_not_settled or drop.never_supported
        if reason:
            text += f", not settled: {reason}"
        elif drop.upper is not None:
            text += f", but a drop up to {drop.upper:.2g} {unit} is not ruled out"
            text += f"; {drop.hint}" if drop.hint else ""
        parts.append(text)
    return "; ".join(parts)
