"""The average of tasks in check_statistics.py: simulated, since nobody can enumerate six tasks.

Beside the package's bounds each row has what two simpler ways would have done: `..._delta` (the
variance at the estimate, 0 without flips) and `..._mover` (squared distances to each task's own
bounds add up). Limits are chosen by effective flips: those of the tasks that carry the variance.
"""

from __future__ import annotations

import numpy as np
import statistics_cases as cases
from scipy import stats

from lm_eval_exl2.compare.statistics import (
    PairedCounts,
    drop_bounds,
    paired_moments,
    stratified_counts,
)
from lm_eval_exl2.compare.statistics.average import average_drop, relative_bounds, sum_of_tasks
from lm_eval_exl2.compare.statistics.score import bounds_of_cells

TAIL, ONE_SIDED = 0.025, 0.05
SIZES = {"mmlu": 14042, "hellaswag": 10042, "arc": 1172, "winogrande": 1267, "gsm8k": 1319}
SCORES = {"mmlu": 0.65, "hellaswag": 0.78, "arc": 0.55, "winogrande": 0.74, "gsm8k": 0.5}


def _full(*flip_rates):
    return list(zip(SIZES.values(), SCORES.values(), flip_rates, strict=True))


# Documents, baseline's score and flip rate of each task.
SUITES = {
    "full": _full(0.06, 0.04, 0.08, 0.06, 0.15),
    "full, 3 % flips": _full(0.03, 0.03, 0.03, 0.03, 0.03),
    "full, one without flips": _full(0.06, 0.04, 0.08, 0.0, 0.15),
    "full and a tiny one": [(50, 0.6, 0.03), *_full(0.03, 0.03, 0.03, 0.03, 0.03)],
    "humaneval, 12 %": [(164, 0.4, 0.12)],
    "three small, 12 %": [(50, 0.6, 0.12), (100, 0.6, 0.12), (164, 0.4, 0.12)],
    "three small, 3 %": [(50, 0.6, 0.03), (100, 0.6, 0.03), (164, 0.4, 0.03)],
    "six of 100, 6 %": [(100, 0.6, 0.06)] * 6,
    "six of 100, 3 %": [(100, 0.6, 0.03)] * 6,
    "six of 100, 1 %": [(100, 0.6, 0.01)] * 6,
    "six of 50, 12 %": [(50, 0.6, 0.12)] * 6,
    "six of 50, 3 %": [(50, 0.6, 0.03)] * 6,
    "six of 50, 1 %": [(50, 0.6, 0.01)] * 6,
}
DROPS = (0.0, 0.01, 0.03)
DRAWS = 3_000


def drops_of_tasks(tasks, drop):
    """Return each task's absolute drop for a relative drop of the average; None if impossible.

    In proportion to the scores; what a task with too few flips cannot lose, the one with the most
    flips does.
    """
    wanted = [drop * baseline for _, baseline, _ in tasks]
    taken = [min(d, flip_rate) for d, (_, _, flip_rate) in zip(wanted, tasks, strict=True)]
    most = max(range(len(tasks)), key=lambda place: tasks[place][2])
    taken[most] += sum(wanted) - sum(taken)
    return taken if taken[most] <= tasks[most][2] + 1e-12 else None


def draw(tasks, drops, draws, generator):
    """Return both right, lost, gained and both wrong, each tasks by samples."""
    tables = []
    for (documents, baseline, flip_rate), drop in zip(tasks, drops, strict=True):
        lost, gained = (flip_rate + drop) / 2, max((flip_rate - drop) / 2, 0.0)
        shares = [baseline - lost, lost, gained, 1 - baseline - gained]
        tables.append(generator.multinomial(documents, shares, size=draws).T.astype(float))
    return tuple(np.stack(tables, axis=1))


def effective_flips(tasks):
    """Return (sum of variances)^2 / sum of squared variances, in flips: 1 / documents^2 each."""
    each = [(n * flip_rate, n**-2.0) for n, _, flip_rate in tasks]
    return sum(f * w for f, w in each) ** 2 / sum(f * w * w for f, w in each)


def rows(judged, rates, suites=SUITES, drops=DROPS, draws=DRAWS):
    """Return the average's rows; `judged` and `rates` are those of check_statistics."""
    found = []
    for (name, tasks), drop in ((suite, drop) for suite in suites.items() for drop in drops):
        taken = drops_of_tasks(tasks, drop)
        if taken is None:
            continue
        cells = draw(tasks, taken, draws, np.random.default_rng(4))
        sides = [relative_bounds(sum_of_tasks(cells, (), alpha)) for alpha in (TAIL, ONE_SIDED)]
        flips = effective_flips(tasks)
        row = {"statistic": "average", "tasks": name, "effective_flips": flips, "drop": drop}
        row |= rates(*sides, drop) | {"draws": draws, "left_out": 0.0} | _simpler(cells, drop)
        found.append(judged(row, flips))
    return found


def _simpler(cells, drop):
    """Return coverage and false support of the delta method and of MOVER, on the contrast."""
    right, lost, gained, _ = cells
    documents = sum(cells)
    kept = 1 - drop
    mean = (gained - kept * lost + drop * right) / documents
    square = (gained + kept**2 * lost + drop**2 * right) / documents
    variance = ((square - mean**2) / (documents - 1)).sum(axis=0)
    contrast, found = mean.sum(axis=0), {}
    d = (lost - gained) / documents
    for alpha in (TAIL, ONE_SIDED):
        z = stats.norm.isf(alpha)
        lower, upper = bounds_of_cells(cells, alpha, False)
        ends = np.sqrt(((upper - d) ** 2).sum(axis=0)), np.sqrt(((d - lower) ** 2).sum(axis=0))
        delta = z * np.sqrt(variance)
        for name, (below, above) in {"delta": (delta, delta), "mover": ends}.items():
            if alpha == ONE_SIDED:
                found[f"false_supported_{name}"] = float((contrast > below + 1e-9).mean())
            else:
                inside = (contrast <= below + 1e-9) & (contrast >= -above - 1e-9)
                found[f"coverage_{name}"] = float(inside.mean())
    return found


def mixed_rows(judged, rates):
    """Six tasks one of which has values (mc2), and MMLU's 57 subjects weighed both ways."""
    generator, draws = np.random.default_rng(5), 500
    tasks, drop = _full(0.06, 0.04, 0.08, 0.06, 0.15), 0.03
    wanted = drops_of_tasks([*tasks, (817, 0.5, 1.0)], drop)
    sides = {TAIL: [], ONE_SIDED: []}
    tables = draw(tasks, wanted[:-1], draws, generator)
    for sample in range(draws):
        pair = cases.values("shares", 817, wanted[-1], generator)
        counts = [PairedCounts(*(cell[task, sample] for cell in tables)) for task in range(5)]
        together = [*counts, paired_moments(*pair, span=1.0)]
        for alpha, bounds in sides.items():
            bounds.append(average_drop(together, alpha).relative_bounds)
    row = {"statistic": "average", "tasks": "full and mc2", "drop": drop}
    row |= rates(*(np.array(bounds).T for bounds in sides.values()), drop)
    return [
        judged(row | {"draws": draws, "left_out": 0.0}, 100),
        *(_strata_row(judged, rates, macro, 1000) for macro in (False, True)),
    ]


def _strata_row(judged, rates, macro, draws):
    """Subjects of 100 to 1534 documents with flip rates from 2 to 14 % and unequal drops."""
    generator = np.random.default_rng(6)
    sizes = np.concatenate([np.full(40, 100), np.linspace(110, 600, 15).astype(int), [895, 1534]])
    flip_rates = np.linspace(0.02, 0.14, 57)[generator.permutation(57)]
    drops = np.clip(0.01 + 0.03 * generator.standard_normal(57), -flip_rates, flip_rates)
    weights = np.ones(57) if macro else sizes
    drop = float(weights @ drops / weights.sum())
    subjects = [(n, 0.6, flip_rate) for n, flip_rate in zip(sizes, flip_rates, strict=True)]
    cells = draw(subjects, drops, draws, generator)
    sides = {TAIL: [], ONE_SIDED: []}
    for sample in range(draws):
        strata = [PairedCounts(*row) for row in np.stack([cell[:, sample] for cell in cells], 1)]
        group = stratified_counts(strata, weights if macro else None)
        for alpha, bounds in sides.items():
            bounds.append(drop_bounds(group, alpha))
    name = "57 subjects, " + ("each the same" if macro else "by size")
    row = {"statistic": "stratified", "tasks": name, "drop": drop}
    row |= rates(*(np.array(bounds).T for bounds in sides.values()), drop)
    return judged(row | {"draws": draws, "left_out": 0.0}, 100)
