"""Do the intervals of `compare` cover, and how often does it call a bad candidate good?

    python benchmarks/check_statistics.py          # writes results/statistics.json, minutes

For each cell of a grid, with the true drop known:

- `coverage`: how often the 95 % interval holds it. Limits: at least .93, and at most .97 where
  flips (documents x flip rate) are 5 or more;
- `false_supported`: how often the one-sided 95 % upper bound lies below it, so that a margin equal
  to the true drop is called kept. Limits: .06, and .055 where flips are 10 or more;
- `false_refuted`: how often the lower bound lies above it. No limit was set; it is shown.

0/1 metrics are summed over all tables but a stated `left_out` probability; where `draws` is above 0
the cell was simulated, and the limits are wider by three Monte-Carlo errors. Cells that cannot
exist (a drop above the flip rate, more flips than documents of that kind) are listed by name. The
tests run parts of the grid.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import statistics_average
import statistics_cases as cases
from environment import environment, write_result
from scipy import stats

from lm_eval_exl2.compare.statistics import (
    certification_power,
    drop_bounds,
    mean_drop,
    paired_counts,
    wider,
)
from lm_eval_exl2.compare.statistics.score import bounds_of_cells, score_statistics

RESULT = Path(__file__).parent / "results" / "statistics.json"
DOCUMENTS = (50, 100, 164, 500, 1319, 5000)
FLIP_RATES = (0.01, 0.03, 0.06, 0.12, 0.3)
DROPS = (0.0, 0.01, 0.03)
BASELINES = (0.3, 0.6, 0.9)
DRAWS = 400_000
TAIL, ONE_SIDED = 0.025, 0.05


def judged(row, flips):
    """Return the row with its limits' verdict; `flips` is documents x flip rate."""

    def error(rate):
        return 3 * np.sqrt(rate * (1 - rate) / row["draws"]) if row["draws"] else 0.0

    most = 0.055 if flips >= 10 - 1e-9 else 0.06
    within = row["coverage"] >= 0.93 - error(0.93) and row["false_supported"] <= most + error(most)
    if flips >= 5 - 1e-9:
        within = within and row["coverage"] <= 0.97 + error(0.97)
    row["within"] = bool(within)
    return {key: round(x, 9) if isinstance(x, float) else x for key, x in row.items()}


def rates(two_sided, one_sided, drop, probability=None):
    """Return coverage and both error rates of (lower, upper) arrays; equally likely by default."""
    share = (
        np.full(len(two_sided[0]), 1 / len(two_sided[0])) if probability is None else probability
    )
    # A bound that equals the drop but for rounding is not beyond it.
    slack = 1e-9
    holds = (two_sided[0] <= drop + slack) & (two_sided[1] >= drop - slack)
    return {
        "coverage": float(1 - share[~holds].sum()),
        "false_supported": float(share[one_sided[1] < drop - slack].sum()),
        "false_refuted": float(share[one_sided[0] > drop + slack].sum()),
    }


def absolute_rows(documents=DOCUMENTS, flip_rates=FLIP_RATES, drops=DROPS):
    """Tango's interval of the difference, by enumeration. Returns rows and skipped cells."""
    rows, skipped = [], []
    for n, flip_rate, drop in ((n, f, d) for n in documents for f in flip_rates for d in drops):
        cell = {"documents": n, "flip_rate": flip_rate, "drop": drop}
        if drop > flip_rate + 1e-12:
            skipped.append({"statistic": "absolute", **cell, "why": "drop exceeds the flip rate"})
            continue
        lost, gained = (flip_rate + drop) / 2, max((flip_rate - drop) / 2, 0.0)
        found = cases.trinomial(n, lost, gained)
        sides = [bounds_of_cells(found.cells, alpha, False) for alpha in (TAIL, ONE_SIDED)]
        row = {"statistic": "absolute", **cell, **rates(*sides, drop, found.probability)}
        row |= {"draws": 0, "left_out": found.left_out}
        rows.append(judged(row, n * flip_rate))
    return rows, skipped


def relative_rows(documents=DOCUMENTS, flip_rates=FLIP_RATES, drops=DROPS, draws=DRAWS):
    """The score bounds of the relative drop: all four cells. Returns rows and skipped cells."""
    rows, skipped, generator = [], [], np.random.default_rng(1)
    grid = [(n, f, b, d) for n in documents for f in flip_rates for b in BASELINES for d in drops]
    for n, flip_rate, baseline, drop in grid:
        cell = {"documents": n, "flip_rate": flip_rate, "baseline": baseline, "drop": drop}
        lost, gained = (flip_rate + drop * baseline) / 2, (flip_rate - drop * baseline) / 2
        shares = np.array([baseline - lost, lost, gained, 1 - baseline - gained])
        if shares.min() < -1e-12:
            skipped.append({"statistic": "relative", **cell, "why": "a share would be negative"})
            continue
        shares = np.maximum(shares, 0) / np.maximum(shares, 0).sum()
        found = cases.quadrinomial(n, shares, generator, draws)
        row = {"statistic": "relative", **cell, **_relative_rates(found, drop)}
        row |= {"draws": found.draws, "left_out": found.left_out}
        rows.append(judged(row, n * flip_rate))
    return rows, skipped


def _relative_rates(found, drop):
    """Read off the statistic at the truth what the bounds say about it: one evaluation, not 52."""
    has_baseline = found.cells[0] + found.cells[1] > 0
    cells = tuple(cell[has_baseline] for cell in found.cells)
    probability = found.probability[has_baseline]
    statistic = score_statistics(cells, np.full_like(cells[0], drop), True)
    none = cells[1] + cells[2] == 0
    unseen = np.where(none, (1 - drop) ** cells[0], 1.0)
    outside = {}
    for alpha in (TAIL, ONE_SIDED):
        z = stats.norm.isf(alpha)
        outside[alpha] = np.where(none, unseen < alpha, statistic > z), ~none & (statistic < -z)
    _check_inversion(cells, drop, outside[ONE_SIDED])
    beyond = outside[TAIL][0] | outside[TAIL][1]
    return {
        "coverage": float(1 - probability[beyond].sum()),
        "false_supported": float(probability[outside[ONE_SIDED][0]].sum()),
        "false_refuted": float(probability[outside[ONE_SIDED][1]].sum()),
    }


def _check_inversion(cells, drop, outside):
    """Stop unless the bounds themselves, for some of the tables, say the same."""
    some = slice(None, None, max(1, len(cells[0]) // 300))
    lower, upper = bounds_of_cells(tuple(cell[some] for cell in cells), ONE_SIDED, True)
    clear = (np.abs(upper - drop) > 1e-9) & (np.abs(lower - drop) > 1e-9)
    for bound, test in ((upper < drop, outside[0][some]), (lower > drop, outside[1][some])):
        if (bound != test)[clear].any():
            raise RuntimeError("a bound and its test disagree")


def _simulated(name, cell, drop, draws, bounds, flips):
    """Return the judged row of a statistic given as bounds(alpha) of one fresh sample."""
    both = np.array(
        [[bounds_of(TAIL), bounds_of(ONE_SIDED)] for bounds_of in map(bounds, range(draws))]
    )
    row = {"statistic": name, **cell, "drop": drop}
    row |= rates(both[:, 0].T, both[:, 1].T, drop) | {"draws": draws, "left_out": 0.0}
    return judged(row, flips)


def value_rows():
    """Paired t, Fieller and BCa on values that are not 0/1."""
    sizes = [(n, 2000 if n >= 500 else 500) for n in DOCUMENTS]
    grid = [("shares", n, relative, draws) for n, draws in sizes for relative in (False, True)]
    grid += [("losses", 50, False, 500), ("losses", 50, True, 500)]
    grid += [("losses", 164, False, 500), ("losses", 500, False, 300)]
    rows = []
    for kind, n, relative, draws in grid:
        generator = np.random.default_rng(2)
        mean = {"shares": 0.5, "losses": 1.0}[kind]
        drop, shift = 0.03, 0.03 * (mean if relative else 1.0)

        def sample(_, kind=kind, n=n, shift=shift, relative=relative, generator=generator):
            pair = cases.values(kind, n, shift, generator)
            return lambda alpha: mean_drop(*pair, alpha, relative=relative).bounds

        cell = {"values": kind, "documents": n, "relative": relative}
        rows.append(_simulated("values", cell, drop, draws, sample, n))
    return rows


def cluster_rows():
    """Passages of 5 documents, intra-class correlation .3: values, and 0/1 flips of 12 %."""
    rows = []
    for flips in (False, True):
        for n in (50, 100, 165, 500, 1320, 5000):
            generator, draws = np.random.default_rng(3), 300 if n < 200 else 2000
            samples = [_clustered(flips, n, generator) for _ in range(draws)]
            cell = {"values": "flips" if flips else "values", "documents": n, "clusters": n // 5}
            row = _simulated(
                "clustered", cell, 0.03, draws, lambda i, s=samples: s[i], 0.12 * n if flips else n
            )
            without = np.mean([_unclustered(*s.keywords["pair"][:2]) < 0.03 for s in samples])
            rows.append(row | {"false_supported_without_clusters": round(float(without), 4)})
    return rows


def _clustered(flips, documents, generator):
    """Draw a sample; return its bounds as a function of the level."""
    if flips:
        return partial(_wider, pair=cases.clustered_flips(documents, 0.075, 0.045, generator))
    return partial(_robust, pair=cases.clustered_values(documents, 0.03, generator))


def _robust(alpha, *, pair):
    baseline, candidate, passage = pair
    return mean_drop(baseline, candidate, alpha, clusters=passage, span=1.0).bounds


def _wider(alpha, *, pair):
    return wider(_robust(alpha, pair=pair), drop_bounds(paired_counts(*pair[:2]), alpha))


def _unclustered(baseline, candidate):
    """Return the upper bound that ignores passages."""
    return mean_drop(baseline, candidate, ONE_SIDED).bounds.upper


def power_rows():
    """How likely a lossless candidate is certified: suites' sizes, usual flip rates, margins."""
    suites = {"tinyMMLU": 100, "humaneval": 164, "arc_challenge": 1172, "gsm8k": 1319}
    suites |= {"hellaswag": 10042, "mmlu": 14042}
    return [
        {"suite": suite, "documents": n, "flip_rate": flip_rate, "margin": margin,
         "power": round(certification_power(n, flip_rate, margin), 4)}
        for suite, n in suites.items()
        for flip_rate in (0.03, 0.06, 0.12)
        for margin in (0.01, 0.02, 0.03)
    ]  # fmt: skip


def measure(workers=1):
    """Run the whole grid, one process per part, and return the result."""
    start = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        parts = [pool.submit(part) for part in (cluster_rows, value_rows)]
        parts += [
            pool.submit(part, judged, rates)
            for part in (statistics_average.rows, statistics_average.mixed_rows)
        ]
        grids = [pool.submit(grid) for grid in (absolute_rows, relative_rows)]
        power = pool.submit(power_rows)
        rows = [row for grid in grids for row in grid.result()[0]]
        rows += [row for part in parts for row in part.result()]
        return {
            "cells": len(rows),
            "cells_within_limits": sum(row["within"] for row in rows),
            "outside": [row for row in rows if not row["within"]],
            "seconds": round(time.perf_counter() - start, 1),
            "rows": rows,
            "power": power.result(),
            "impossible": [cell for grid in grids for cell in grid.result()[1]],
        }


def main():
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes to use")
    found = measure(parser.parse_args().workers)
    write_result(RESULT, {"environment": environment("numpy", "scipy"), **found})


if __name__ == "__main__":
    main()
