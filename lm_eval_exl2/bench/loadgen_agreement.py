"""Our own figures beside those of LoadGen's summary, computed as LoadGen computes them.

The two read their clocks in two processes: LoadGen's is read after the word of a token has crossed
a pipe. A figure agrees within 2 % and 5 ms, which is a few turns of a busy machine's scheduler.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

from lm_eval_exl2.bench.records import (
    end_to_end,
    time_per_output_token,
    time_to_first_token,
)
from lm_eval_exl2.bench.summary import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval_exl2.bench.records import TimedRequest
    from lm_eval_exl2.bench.scenarios import ScenarioRun

    _Measure = Callable[[TimedRequest], float | None]

SHARE: Final = 0.02
LATENCY_S: Final = 0.005

_SHARES: Final = (0.5, 0.9, 0.99)


class Agreement(NamedTuple):
    """One figure, twice; seconds, or per second."""

    name: str
    """LoadGen's."""
    ours: float
    loadgen: float
    agrees: bool


def compare(run: ScenarioRun) -> list[Agreement]:
    """Return every figure that both have; none if LoadGen's test did not run to its end."""
    if run.loadgen is None:
        return []
    figures = run.loadgen.figures
    scenario = run.settings.scenario
    size = run.settings.streams if scenario == "MultiStream" else 1
    found = _latencies("latency (ns)", _query_latencies(run.requests, size))
    if scenario != "Offline":
        found |= _latencies("first token latency (ns)", _all(run.requests, time_to_first_token))
        # LoadGen takes a single token for none, and its time per token for a negative one.
        if all(len(request.token_ids) > 1 for request in run.requests):
            name = "time to output token (ns)"
            found |= _percentiles(name, _all(run.requests, time_per_output_token))
    pairs = [
        Agreement(name, ours, theirs, abs(ours - theirs) <= LATENCY_S + SHARE * abs(theirs))
        for name, ours in found.items()
        if (theirs := figures.get(name, 0.0) / 1e9)
    ]
    return pairs + [
        Agreement(name, ours, figures[name], _rates_agree(ours, figures[name], run))
        for name, ours in rates(run.requests, scenario).items()
        if name in figures
    ]


def _rates_agree(ours: float, theirs: float, run: ScenarioRun) -> bool:
    """Whether two rates differ by no more than the seconds they are counted over may."""
    share = SHARE + LATENCY_S / max(run.summary.wall_s, LATENCY_S)
    return abs(ours - theirs) <= share * theirs


def _all(requests: Sequence[TimedRequest], measure: _Measure) -> list[float]:
    return [value for request in requests if (value := measure(request)) is not None]


def _query_latencies(requests: Sequence[TimedRequest], size: int) -> list[float]:
    """Return how long each query of so many requests took as a whole."""
    latencies = _all(requests, end_to_end)
    return [max(latencies[first : first + size]) for first in range(0, len(latencies), size)]


def _latencies(name: str, values: Sequence[float]) -> dict[str, float]:
    words = name.replace("first token", "First Token")  # LoadGen spells it both ways
    return _percentiles(name, values) | {
        f"Min {words}": min(values),
        f"Max {words}": max(values),
        f"Mean {words}": statistics.fmean(values),
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{share:.2%} {name}".replace("%", " percentile"): percentile(values, share)
        for share in _SHARES
    }


def rates(requests: Sequence[TimedRequest], scenario: str) -> dict[str, float]:
    """Return rates as LoadGen counts them: to the end of the query that was issued last."""
    start_s = requests[0].arrival_s
    tokens = sum(len(each.token_ids) for each in requests if len(each.token_ids) > 1)
    if scenario == "Offline":
        seconds = max(_all(requests, end_to_end))
        return {
            "Samples per second": len(requests) / seconds,
            "Tokens per second": tokens / seconds,
        }
    seconds = requests[-1].token_times_s[-1] - start_s
    return {
        "Completed samples per second": (len(requests) - 1) / seconds,
        "Completed tokens per second": tokens / seconds,
    }
