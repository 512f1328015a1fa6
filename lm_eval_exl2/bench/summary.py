"""Requests -> distributions: what a table shows of many latencies.

A percentile is shown only where there are queries enough for it (`early_stopping`); what has none
is counted beside. The percentile of n sorted values is the one at place floor(share * n), from 0,
as LoadGen takes it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lm_eval_exl2.bench import records
from lm_eval_exl2.bench.early_stopping import minimum_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval_exl2.bench.records import TimedRequest

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What is known of values; seconds, or tokens per second."""

    count: int
    queries: int
    """Requests that the values come from; with fewer than `needed`, a percentile is None."""
    undefined: int
    """Requests without such a value, a single token having no time per token."""
    mean: float | None
    minimum: float | None
    maximum: float | None
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """What a run of many requests comes to."""

    finished: int
    unfinished: int
    output_tokens: int
    """Of all requests, the unfinished included."""
    wall_s: float
    requests_per_s: float | None
    """Finished ones."""
    system_tokens_per_s: float | None
    ttft_s: Distribution
    tpot_s: Distribution
    """A value per request."""
    itl_s: Distribution
    """A value per gap. Gaps of a request depend on each other, so requests count as queries."""
    end_to_end_s: Distribution
    user_tokens_per_s: Distribution
    """The decode rate of each request. Its p99 is that of the fast ones."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile of at least one value, however few there are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def needed(name: str) -> int:
    """Return the queries that a percentile (`p50`, `p90`, `p99`) takes at least."""
    return minimum_queries(0, PERCENTILES[name])


def describe(values: Sequence[float], *, queries: int, undefined: int = 0) -> Distribution:
    """Describe values that come from so many requests."""
    shown = {
        name: percentile(values, share) if values and queries >= needed(name) else None
        for name, share in PERCENTILES.items()
    }
    return Distribution(
        count=len(values),
        queries=queries,
        undefined=undefined,
        mean=statistics.fmean(values) if values else None,
        minimum=min(values, default=None),
        maximum=max(values, default=None),
        **shown,
    )


def summarise(requests: Sequence[TimedRequest]) -> LoadSummary:
    """Sum up a run; latencies are of requests that finished."""
    measured = [request for request in requests if request.is_measured]
    finished = sum(request.outcome == records.FINISHED for request in requests)
    wall_s = records.wall_time(requests)
    gaps = [gap for request in measured for gap in records.inter_token_latencies(request)]
    with_gaps = sum(len(request.token_times_s) > 1 for request in measured)
    return LoadSummary(
        finished=finished,
        unfinished=len(requests) - finished,
        output_tokens=sum(len(request.token_ids) for request in requests),
        wall_s=wall_s,
        requests_per_s=finished / wall_s if wall_s else None,
        system_tokens_per_s=records.system_rate(requests),
        ttft_s=_of(measured, records.time_to_first_token),
        tpot_s=_of(measured, records.time_per_output_token),
        itl_s=describe(gaps, queries=with_gaps, undefined=len(measured) - with_gaps),
        end_to_end_s=_of(measured, records.end_to_end),
        user_tokens_per_s=_of(measured, records.decode_rate),
    )


def _of(
    requests: Sequence[TimedRequest], measure: Callable[[TimedRequest], float | None]
) -> Distribution:
    found = [measure(request) for request in requests]
    values = [value for value in found if value is not None]
    return describe(values, queries=len(values), undefined=len(found) - len(values))
