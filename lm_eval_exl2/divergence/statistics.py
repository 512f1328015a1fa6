"""What is known of every token -> means, quantiles, intervals. Numpy and scipy only.

Tokens of one window share their text, so the unit that repeats is the window: standard errors are
those of a ratio of two sums over windows (Cochran 1977, section 2.11) that correlate with their
neighbours (`sum_of_windows`), intervals take Student's t. Values that are not finite are counted
and left out. Log-probabilities in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
from scipy import stats

from lm_eval_exl2.compare.statistics import sum_of_windows, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CONFIDENCE: Final = 0.95
BUCKET_EDGES: Final = (0.0, 0.25, 0.5, 0.75, 0.95)
"""Lower edges of the baseline's highest probability; the last bucket includes 1."""


class WindowRecord(NamedTuple):
    """One window's tokens: `tokens.TokenValues` of all its pieces, as arrays."""

    kl: Floats
    top_probability: Floats
    agreeing: NDArray[np.int64]
    baseline_logprob: Floats
    candidate_logprob: Floats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error and 95 % interval; NaN where there are too few windows."""

    value: float
    stderr: float
    lower: float
    upper: float

    def mapped_by_exp(self) -> Estimate:
        """Return the exponential; its standard error by the delta method."""
        value = _exp(self.value)
        return Estimate(value, value * self.stderr, _exp(self.lower), _exp(self.upper))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens whose most likely one has, by the baseline, a probability in [lower, upper)."""

    lower: float
    upper: float
    count: int
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How far a candidate is from its baseline."""

    windows: int
    positions: int
    """Where distributions were compared."""
    non_finite: int
    """Of them with a KL that is NaN or infinite; left out of everything but the perplexities."""
    kl: Estimate
    median: float
    p90: float
    p99: float
    largest: float
    smallest: float
    buckets: Sequence[Bucket]
    agreement: Sequence[Estimate]
    """Share of positions, those that a token follows, with the same most likely token; then with
    the same two in order, and so on."""
    delta_p: Estimate
    """Mean change of the probability of the token that follows; negative is worse."""
    delta_p_rms: float
    targets: int
    """Tokens whose probability both models gave."""
    non_finite_targets: int
    """Tokens to which one of them gave none; left out of the perplexities of both."""
    baseline_perplexity: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    """Candidate / baseline, paired by window."""


def summarise(
    records: Sequence[WindowRecord], *, top: int = 1, stride: int | None = None
) -> Summary:
    """Sum up all windows.

    Args:
        records: At least one window.
        top: Most likely tokens whose order was compared.
        stride: Tokens from one window's start to the next one's; None takes windows as independent.
    """
    finite = [np.isfinite(record.kl) for record in records]
    kl = _by_window([r.kl[f] for r, f in zip(records, finite, strict=True)], stride)
    values = np.concatenate([r.kl[f] for r, f in zip(records, finite, strict=True)])
    top_probability = np.concatenate(
        [r.top_probability[f] for r, f in zip(records, finite, strict=True)]
    )
    agreeing = [r.agreeing[f[: len(r.agreeing)]] for r, f in zip(records, finite, strict=True)]
    known = [np.isfinite(r.candidate_logprob) & np.isfinite(r.baseline_logprob) for r in records]
    baseline = [r.baseline_logprob[k] for r, k in zip(records, known, strict=True)]
    candidate = [r.candidate_logprob[k] for r, k in zip(records, known, strict=True)]
    pairs = list(zip(candidate, baseline, strict=True))
    delta = [np.exp(c) - np.exp(b) for c, b in pairs]
    return Summary(
        windows=len(records),
        positions=sum(len(r.kl) for r in records),
        non_finite=sum(int((~f).sum()) for f in finite),
        kl=kl,
        median=_quantile(values, 0.5),
        p90=_quantile(values, 0.9),
        p99=_quantile(values, 0.99),
        largest=_quantile(values, 1.0),
        smallest=_quantile(values, 0.0),
        buckets=_buckets(values, top_probability),
        agreement=[_share([a >= k for a in agreeing], stride) for k in range(1, top + 1)],
        delta_p=_by_window(delta, stride),
        delta_p_rms=math.sqrt(_mean(np.concatenate(delta) ** 2)),
        targets=sum(len(part) for part in baseline),
        non_finite_targets=sum(int((~k).sum()) for k in known),
        baseline_perplexity=_by_window([-b for b in baseline], stride).mapped_by_exp(),
        perplexity=_by_window([-c for c in candidate], stride).mapped_by_exp(),
        perplexity_ratio=_by_window([b - c for c, b in pairs], stride).mapped_by_exp(),
    )


def ratio_of_sums(
    totals: Sequence[float], counts: Sequence[int], stride: int | None = None
) -> Estimate:
    """Estimate a mean from sums and counts by window; `stride` as in `summarise`."""
    count = sum(counts)
    if not count:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    mean = math.fsum(totals) / count
    windows = len(totals)
    if windows < 2:
        return Estimate(mean, math.nan, math.nan, math.nan)
    residuals = [t - mean * n for t, n in zip(totals, counts, strict=True)]
    squares = windows / (windows - 1) * math.fsum(residual**2 for residual in residuals)
    degrees = windows - 1
    if stride is not None:
        squares, degrees = sum_of_windows(residuals, [stride * at for at in range(windows)])
    stderr = math.sqrt(squares) / count
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * stderr
    return Estimate(mean, stderr, mean - reach, mean + reach)


def _by_window(parts: Sequence[Floats], stride: int | None) -> Estimate:
    return ratio_of_sums([math.fsum(part) for part in parts], [len(part) for part in parts], stride)


def _share(parts: Sequence[NDArray[np.bool_]], stride: int | None) -> Estimate:
    """Estimate a share; of Wilson's interval and that by windows, what either holds.

    Without any difference between windows the latter has no width, and Wilson's still has.
    """
    found = ratio_of_sums(
        [int(part.sum()) for part in parts], [len(part) for part in parts], stride
    )
    count = sum(len(part) for part in parts)
    if not count:
        return found
    hits = sum(int(part.sum()) for part in parts)
    ends = [found.lower, found.upper, *wilson_interval(hits, count, CONFIDENCE)]
    known = [min(1.0, max(0.0, float(end))) for end in ends if not math.isnan(end)]
    return Estimate(found.value, found.stderr, min(known), max(known))


def _buckets(values: Floats, top_probability: Floats) -> list[Bucket]:
    ends = (*BUCKET_EDGES[1:], 1.0)
    numbers = np.searchsorted(BUCKET_EDGES, top_probability, side="right") - 1
    return [
        Bucket(lower, upper, int((numbers == number).sum()), _mean(values[numbers == number]))
        for number, (lower, upper) in enumerate(zip(BUCKET_EDGES, ends, strict=True))
    ]


def _mean(values: Floats) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan


def _quantile(values: Floats, share: float) -> float:
    """Return a quantile, linear between neighbours; NaN of nothing."""
    return float(cast("float", np.quantile(values, share))) if len(values) else math.nan


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # infinity says what there is to say
        return float(np.exp(value))
