"""Pairs of runs with a known drop, for check_statistics.py: enumerated where feasible, else drawn.

`Samples` of 0/1 metrics hold tables of four counts and how likely each is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

UNLIKELY = 1e-8
MOST_TABLES = 3_000_000


class Samples(NamedTuple):
    """Both right, lost, gained, both wrong, and the probability of each table."""

    cells: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    probability: np.ndarray
    draws: int
    """0 if enumerated."""
    left_out: float
    """Probability of the tables that were not enumerated."""


def trinomial(documents, lost, gained):
    """Enumerate numbers of lost and gained documents; concordant ones count as both right."""
    x = _likely(documents, lost)[:, None]
    y = _likely(documents, gained)[None, :]
    given = gained / (1 - lost) if lost < 1 else 0.0
    probability = stats.binom.pmf(x, documents, lost) * stats.binom.pmf(y, documents - x, given)
    keep = probability > 0
    x, y = (np.broadcast_to(axis, keep.shape)[keep].astype(float) for axis in (x, y))
    probability = probability[keep]
    cells = (documents - x - y, x, y, np.zeros_like(x))
    return Samples(cells, probability, 0, 1 - float(probability.sum()))


def quadrinomial(documents, shares, generator, draws):
    """Enumerate all four counts, or draw them where there are too many tables."""
    right, lost, gained, wrong = shares
    flips = trinomial(documents, lost, gained)
    given = right / (right + wrong) if right + wrong > 0 else 0.0
    rights = _likely(documents, right)
    if len(flips.probability) * len(rights) > MOST_TABLES:
        tables, counts = np.unique(
            generator.multinomial(documents, shares, size=draws), axis=0, return_counts=True
        )
        return Samples(tuple(tables.T.astype(float)), counts / draws, draws, 0.0)
    rest = flips.cells[0][:, None]
    probability = flips.probability[:, None] * stats.binom.pmf(rights[None, :], rest, given)
    keep = probability > 1e-16
    x, y, z, r = (
        np.broadcast_to(axis, keep.shape)[keep].astype(float)
        for axis in (rights[None, :], flips.cells[1][:, None], flips.cells[2][:, None], rest)
    )
    probability = probability[keep]
    return Samples((x, y, z, r - x), probability, 0, 1 - float(probability.sum()))


def _likely(documents, rate):
    low, high = (
        stats.binom.ppf(UNLIKELY / 2, documents, rate),
        stats.binom.isf(UNLIKELY / 2, documents, rate),
    )
    return np.arange(max(int(low), 0), int(high) + 1)


def values(kind, documents, drop, generator):
    """Return one pair of runs with values, and the true drop in the baseline's unit.

    `shares` are like mc2: in [0, 1], most documents move little, some much. `losses` are like a
    log-loss per document: skewed to the worse side.
    """
    if kind == "shares":
        baseline = generator.beta(1.2, 1.2, documents)
        moved = generator.random(documents) < 0.2
        noise = generator.normal(0, np.where(moved, 0.25, 0.03))
        return baseline, baseline - drop - noise
    baseline = generator.gamma(2.0, 0.5, documents)
    worse = generator.lognormal(0.0, 1.0, documents) - np.exp(0.5)
    return baseline, baseline - drop - 0.1 * worse


def clustered_values(documents, drop, generator, *, correlation=0.3, size=5):
    """Return baseline, candidate and passage of each document; drops correlate within a passage."""
    passage = np.arange(documents) // size
    shared = generator.normal(0, np.sqrt(correlation), passage[-1] + 1)[passage]
    own = generator.normal(0, np.sqrt(1 - correlation), documents)
    baseline = generator.beta(1.2, 1.2, documents)
    return baseline, baseline - drop - 0.2 * (shared + own), passage


def clustered_flips(documents, lost, gained, generator, *, correlation=0.3, size=5):
    """Return 0/1 scores whose flips correlate within a passage.

    With probability sqrt(correlation) a document does what its passage does, else its own draw:
    indicators of one passage then have exactly that intra-class correlation.
    """
    passage = np.arange(documents) // size
    follows = generator.random(documents) < np.sqrt(correlation)
    place = np.where(
        follows, generator.random(passage[-1] + 1)[passage], generator.random(documents)
    )
    right, half = 0.5 - lost, 0.5
    baseline = np.where(place < half, 1.0, 0.0)
    candidate = np.where((place < right) | (place >= 1 - gained), 1.0, 0.0)
    return baseline, candidate, passage
