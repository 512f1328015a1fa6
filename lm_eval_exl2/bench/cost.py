"""A price per hour -> what tokens and evaluations cost. Pure.

Everything is in the currency of the price. A run's whole cost is spread over its tokens three ways
- over those of the prompts, over those written, over both - so the three are not parts of a sum:
who pays for output alone reads `output_per_million`. Idle time, loading and taxes are not in it
unless the seconds that are given include them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_eval_exl2.errors import OptionError

_SECONDS_PER_HOUR = 3600
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost."""

    run: float
    input_per_million: float | None
    """The whole run over its prompt tokens; None where there are none. So are the others."""
    output_per_million: float | None
    total_per_million: float | None
    evaluation: float | None
    """One evaluation of the whole data set at this speed; None if its size was not given."""


def cost_of_run(
    price_per_hour: float,
    seconds: float,
    *,
    input_tokens: int,
    output_tokens: int,
    documents: int | None = None,
    full_documents: int | None = None,
) -> Cost:
    """Spread the cost of a run over its tokens.

    Args:
        price_per_hour: Of the whole machine that ran it.
        seconds: How long it ran.
        input_tokens: Of all prompts, as often as they were sent.
        output_tokens: Written.
        documents: How many the run answered.
        full_documents: How many the evaluation has; with `documents` its cost is extrapolated in
            proportion.

    Raises:
        OptionError: A number is negative, or no number.
    """
    for name, value in (
        ("price_per_hour", price_per_hour),
        ("seconds", seconds),
        ("input_tokens", input_tokens),
        ("output_tokens", output_tokens),
        ("documents", documents or 0),
        ("full_documents", full_documents or 0),
    ):
        if not math.isfinite(value) or value < 0:
            raise OptionError(f"{name} is {value}, expected a number of at least 0")
    cost = price_per_hour * seconds / _SECONDS_PER_HOUR
    evaluation = None
    if documents and full_documents is not None:
        evaluation = cost * full_documents / documents
    return Cost(
        run=cost,
        input_per_million=_per_million(cost, input_tokens),
        output_per_million=_per_million(cost, output_tokens),
        total_per_million=_per_million(cost, input_tokens + output_tokens),
        evaluation=evaluation,
    )


def _per_million(cost: float, tokens: int) -> float | None:
    return cost / tokens * _MILLION if tokens else None
