"""The document of a run -> drawings: latencies, throughput against load, quality against speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lm_eval_exl2.bench.curves import Curves, Line, draw
from lm_eval_exl2.bench.prompt_bench import FIXED_LENGTH
from lm_eval_exl2.bench.report import load_of, name_of, runs_of
from lm_eval_exl2.compare.render import scatter
from lm_eval_exl2.compare.render.plots import STATE_CLASSES, Figure
from lm_eval_exl2.compare.render.scatter import Plot, Point
from lm_eval_exl2.compare.render.words import left_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lm_eval_exl2.compare.results import CandidateResult, Comparison

    Json = Mapping[str, Any]

_MS = 1e3
_Measure = Callable[["Json"], float | None]


def figures(document: Json, comparison: Comparison | None = None) -> list[Figure]:
    """All that can be drawn.

    Args:
        document: Of `bench --json`.
        comparison: Of `compare --json`, for quality against speed; its variants are found by the
            names of their folders.
    """
    found = [_latencies(document), _load(document)]
    if comparison is not None:
        found.append(_quality(document, comparison))
    return [figure for figure in found if figure.drawings]


def _latencies(document: Json) -> Figure:
    measures: dict[str, _Measure] = {
        "time to first token": _ttft,
        "time per output token": _tpot,
        "end to end": _end_to_end,
    }
    titles = dict.fromkeys(load_of(run) for _, run in runs_of(document))
    drawings = [
        drawn
        for title in titles
        for name, measure in measures.items()
        if (drawn := _distribution(document, title, name, measure)) is not None
    ]
    return Figure(
        "Latencies",
        drawings,
        "How many of the finished requests were at least so fast. A percentile far to the right "
        "needs many requests; the tables say where there are too few.",
    )


def _distribution(document: Json, title: str, name: str, measure: _Measure) -> Markup | None:
    """One latency of one scenario and load, a line per checkpoint."""
    lines = [
        Line(name_of(entry), shares)
        for entry, run in runs_of(document)
        if load_of(run) == title and (shares := _shares(run["requests"], measure))
    ]
    if not lines:
        return None
    says = f"Distribution of the {name}, {title}"
    return draw(Curves(says, f"{name}, ms", f"{title}: share of requests, %", lines, width=360))


def _shares(requests: Sequence[Json], measure: _Measure) -> list[tuple[float, float]]:
    """The empirical distribution of what can be measured: (ms, per cent); of one value, none."""
    finished = [request for request in requests if request["outcome"] == "finished"]
    values = sorted(value * _MS for each in finished if (value := measure(each)) is not None)
    if len(values) < 2:
        return []
    return [(value, 100 * place / len(values)) for place, value in enumerate(values, 1)]


def _arrival(request: Json) -> float:
    scheduled: float | None = request["scheduled_s"]
    return request["issued_s"] if scheduled is None else scheduled


def _ttft(request: Json) -> float | None:
    first: float | None = request["first_token_s"]
    return None if first is None else first - _arrival(request)


def _end_to_end(request: Json) -> float | None:
    last: float | None = request["last_token_s"]
    return None if last is None else last - _arrival(request)


def _tpot(request: Json) -> float | None:
    tokens: int = request["tokens"]
    if tokens < 2:
        return None
    return (request["last_token_s"] - request["first_token_s"]) / (tokens - 1)


def _load(document: Json) -> Figure:
    """Server runs at several loads, by checkpoint."""
    throughput: list[Line] = []
    waits: list[Line] = []
    for entry in document["checkpoints"]:
        runs = [run for run in entry["scenarios"] if run["load_qps"] is not None]
        if len({run["load_qps"] for run in runs}) < 2:
            continue
        runs.sort(key=lambda run: run["load_qps"])
        throughput += _points(entry, runs, lambda run: run["summary"]["system_tokens_per_s"])
        waits += _points(entry, runs, _median_wait)
    drawings: list[Markup] = []
    offered = "offered requests/s"
    if throughput:
        says = "Output tokens per second of the system against offered load"
        drawings.append(draw(Curves(says, offered, "tokens/s, system", throughput, marked=True)))
    if waits:
        says = "Median time to first token against offered load"
        drawings.append(draw(Curves(says, offered, "TTFT p50, ms", waits, marked=True)))
    return Figure(
        "Throughput against load",
        drawings,
        "Server scenario. Beyond capacity the throughput stays and the wait grows, since requests "
        "queue from their scheduled arrival.",
    )


def _points(entry: Json, runs: Sequence[Json], measure: _Measure) -> list[Line]:
    points = [(run["load_qps"], value) for run in runs if (value := measure(run)) is not None]
    return [Line(name_of(entry), points)] if points else []


def _median_wait(run: Json) -> float | None:
    median: float | None = run["summary"]["ttft_s"]["p50"]
    return None if median is None else median * _MS


def _quality(document: Json, comparison: Comparison) -> Figure:
    """Recovery against decoding speed; the larger of both is better."""
    speeds = {Path(entry["name"]).name: speed for entry, speed in _speeds(document)}
    found = [
        (each, speed)
        for each in comparison.candidates
        if (speed := speeds.get(each.variant.label)) is not None and each.average is not None
    ]
    points = [_quality_point(each, speed, found) for each, speed in found]
    baseline = speeds.get(comparison.baseline.label)
    reference = None
    if baseline is not None:
        name = comparison.baseline.label
        reference = Point(name, baseline, 100.0, None, None, "s-baseline", True)
    drawings: list[Markup] = []
    if points:
        names = ", ".join(point.name for point in points)
        plot = Plot(
            f"Recovery against decode tokens per second of {names}",
            "decode tokens/s, one request at a time",
            "recovery, %",
            points,
            reference,
            None if comparison.accepts is None else 100 - comparison.accepts,
        )
        drawings.append(scatter.draw(plot))
    return Figure(
        "Quality against speed",
        drawings,
        "Recovery: the average score in per cent of the baseline's, with one-sided 95 % bounds. "
        "Filled: no other variant is faster and better. Colours are the verdicts of compare.",
    )


def _speeds(document: Json) -> Iterator[tuple[Json, float]]:
    """Median decode speed at a fixed length, by checkpoint."""
    for entry in document["checkpoints"]:
        for bench in entry["prompt_bench"]:
            figure = bench["figures"].get("decode_tokens_per_s")
            if figure and bench["ending"] == FIXED_LENGTH:
                yield entry, figure["median"]


def _quality_point(
    each: CandidateResult, speed: float, found: Sequence[tuple[CandidateResult, float]]
) -> Point:
    recovery = _recovery(each)
    beaten = any(
        other is not each
        and faster >= speed
        and _recovery(other) >= recovery
        and (faster, _recovery(other)) != (speed, recovery)
        for other, faster in found
    )
    drop = each.average.relative if each.average else None
    low, high = (left_of(100, end) for end in (drop and drop.upper, drop and drop.lower))
    style = STATE_CLASSES.get(each.verdict.state, "")
    return Point(each.variant.label, speed, recovery, low, high, style, not beaten)


def _recovery(each: CandidateResult) -> float:
    return 100 - each.average.relative.estimate if each.average else 0.0
