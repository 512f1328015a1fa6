"""The page's drawings: scores and recovery against size, changed answers, parts of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from lm_eval_exl2.compare import policy
from lm_eval_exl2.compare.render import flips_chart, heat_map, scatter
from lm_eval_exl2.compare.render.headline import part_of
from lm_eval_exl2.compare.render.recovery import pareto
from lm_eval_exl2.compare.render.scatter import Plot, Point
from lm_eval_exl2.compare.render.words import is_known, is_share, is_share_average, left_of, scaled
from lm_eval_exl2.compare.results import (
    Average,
    Bounds,
    CandidateResult,
    Comparison,
    Interval,
    UnitResult,
    Variant,
)

STATE_CLASSES = {
    policy.SHIP: "s-ship",
    policy.ACCEPTABLE: "s-acceptable",
    policy.MARGINAL: "s-marginal",
    policy.DO_NOT_SHIP: "s-do-not-ship",
    policy.INCONCLUSIVE: "s-inconclusive",
    policy.CANNOT_COMPARE: "s-cannot-compare",
}


class Figure(NamedTuple):
    """Drawings that belong together."""

    title: str
    drawings: list[Markup]
    caption: str


def figures(comparison: Comparison) -> list[Figure]:
    """All that can be drawn: what has no size or no bits per weight is left out of a plot."""
    found = [_averages(comparison), _tasks(comparison)]
    found.append(
        Figure(
            "Changed answers by task",
            flips_chart.draw(comparison),
            "Share of the compared documents; the numbers are documents. Lost: right to wrong. "
            "Gained: wrong to right. Other wrong: wrong to another wrong answer.",
        )
    )
    found += [
        Figure(f"Parts of {name}", [drawn], heat_map.CAPTION)
        for name, drawn in heat_map.draw_all(comparison)
    ]
    return [figure for figure in found if figure.drawings]


class _Axis(NamedTuple):
    title: str
    value: Callable[[Variant], float | None]


def _axes(comparison: Comparison) -> list[_Axis]:
    variants = [comparison.baseline, *(each.variant for each in comparison.candidates)]
    largest = max((each.checkpoint_bytes or 0 for each in variants), default=0)
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if largest >= unit), (1e3, "kB")
    )

    def size(variant: Variant) -> float | None:
        return None if variant.checkpoint_bytes is None else variant.checkpoint_bytes / unit

    return [_Axis("bits per weight", _bits), _Axis(f"size of the checkpoint, {name}", size)]


def _bits(variant: Variant) -> float | None:
    return variant.bits_per_weight


def _averages(comparison: Comparison) -> Figure:
    accepted = None
    if comparison.drop == "relative" and comparison.accepts is not None:
        accepted = 100 - comparison.accepts
    measures = [_Measure("recovery, %", 100.0, _relative, accepted)]
    average = _whole_average(comparison)
    if average is not None and is_share_average(average):
        measures.insert(0, _Measure("average score, %", 100 * average.baseline, _absolute, None))
    drawings = [
        _plot(comparison, axis, measure) for measure in measures for axis in _axes(comparison)
    ]
    return Figure(
        "Score and recovery against size",
        [drawing for drawing in drawings if drawing],
        "Each point is the baseline (diamond, dashed line) less the paired drop, so that partial "
        "runs stand where they belong; whiskers are its one-sided 95 % bounds. Dotted line: the "
        "worst that the profile accepts. Filled: no other variant is smaller and better; hollow: "
        "one is.",
    )


class _Measure(NamedTuple):
    """What stands on the upright axis: a baseline, and what is taken from it."""

    title: str
    baseline: float
    drop: Callable[[Average], Bounds]
    accepted: float | None


def _relative(average: Average) -> Bounds:
    return average.relative


def _absolute(average: Average) -> Bounds:
    return average.absolute


def _whole_average(comparison: Comparison) -> Average | None:
    """That of the first candidate which was compared on all documents, else of the first."""
    averages = [each for each in comparison.candidates if each.average]
    whole = [each for each in averages if not _is_partial(each)]
    return next((each.average for each in [*whole, *averages]), None)


def _is_partial(candidate: CandidateResult) -> bool:
    return any(part_of(unit) for unit in candidate.units)


def _plot(comparison: Comparison, axis: _Axis, measure: _Measure) -> Markup | None:
    points: list[Point] = []
    for each, front in zip(comparison.candidates, pareto(comparison), strict=True):
        x = axis.value(each.variant)
        if not is_known(x) or each.average is None:
            continue
        drop = measure.drop(each.average)
        y = measure.baseline - drop.estimate
        if is_known(y):
            low, high = (left_of(measure.baseline, end) for end in (drop.upper, drop.lower))
            style = STATE_CLASSES.get(each.verdict.state, "")
            points.append(Point(each.variant.label, x, y, low, high, style, front is True))
    if not points:
        return None
    x = axis.value(comparison.baseline)
    reference = None
    if is_known(x) and is_known(measure.baseline):
        name = comparison.baseline.label
        reference = Point(name, x, measure.baseline, None, None, "s-baseline", True)
    says = f"{measure.title} against {axis.title} of {', '.join(each.name for each in points)}"
    return scatter.draw(Plot(says, axis.title, measure.title, points, reference, measure.accepted))


def _tasks(comparison: Comparison) -> Figure:
    names = dict.fromkeys(unit.name for each in comparison.candidates for unit in each.units)
    drawings = [_task(comparison, name) for name in names]
    return Figure(
        "Scores by task against bits per weight",
        [drawing for drawing in drawings if drawing],
        "Whiskers: 95 % intervals of each score by itself; the paired differences in the tables "
        "are sharper. Diamond and dashed line: the baseline. Hollow: only a part of the documents "
        "was compared, on which the baseline's score is another one.",
    )


def _task(comparison: Comparison, name: str) -> Markup | None:
    found = [
        (each, unit) for each in comparison.candidates for unit in each.units if unit.name == name
    ]
    points: list[Point] = []
    for each, unit in found:
        style = STATE_CLASSES.get(each.verdict.state, "")
        points += _unit_point(each.variant, unit, unit.candidate, style)
    if not points:
        return None
    units = [unit for _, unit in found]
    whole = next((unit for unit in units if not part_of(unit)), units[0])
    reference = _unit_point(comparison.baseline, whole, whole.baseline, "s-baseline")
    per_cent = ", %" if all(map(is_share, units)) else ""
    plot = Plot(
        f"{name} against bits per weight",
        "bits per weight",
        f"{name}, {units[0].metric}{per_cent}",
        points,
        reference[0] if reference else None,
        width=290,
        height=210,
        named=False,
    )
    return scatter.draw(plot)


def _unit_point(variant: Variant, unit: UnitResult, score: Interval, style: str) -> list[Point]:
    if not (is_known(variant.bits_per_weight) and is_known(score.estimate)):
        return []
    factor = 100 if is_share(unit) else 1
    low, high = (scaled(end, factor) for end in (score.lower, score.upper))
    y, whole = factor * score.estimate, not part_of(unit)
    return [Point(variant.label, variant.bits_per_weight, y, low, high, style, whole)]
