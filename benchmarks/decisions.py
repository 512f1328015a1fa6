"""How often does a verdict come out which way? Made-up candidates on six tasks of real size.

    python benchmarks/decisions.py [--draws 1000]

Flip rates are 4 to 15 %. For each true average drop candidates are drawn, averaged and judged by
profile `general` as `compare` does it; the table counts states. At a true drop of exactly what the
profile accepts (3 %), at most 5 % may come out better than inconclusive. Writes
results/decisions.json.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from environment import environment, write_result

from lm_eval_exl2.compare import policy, statistics, verdict

RESULT = Path(__file__).parent / "results" / "decisions.json"
TRUE_DROPS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
_ALLOWED = 0.05


class Task(NamedTuple):
    """One benchmark: documents, the baseline's score, share of documents that flip."""

    name: str
    documents: int
    baseline: float
    flips: float
    graded: bool = False


TASKS = (
    Task("mmlu", 14042, 0.65, 0.08),
    Task("hellaswag", 10042, 0.79, 0.05),
    Task("arc_challenge", 1172, 0.58, 0.10),
    Task("winogrande", 1267, 0.74, 0.12),
    Task("gsm8k", 1319, 0.50, 0.15),
    Task("truthfulqa_mc2", 817, 0.52, 0.04, graded=True),
)


def draw(
    task: Task, drop: float, random: np.random.Generator
) -> statistics.PairedCounts | statistics.PairedMoments:
    """Draw a candidate's results on one task; `drop` is absolute, as a fraction."""
    if task.graded:
        before = random.beta(2.0, 2.0 * (1 - task.baseline) / task.baseline, task.documents)
        after = before - drop + random.normal(0, 0.1, task.documents)
        return statistics.paired_moments(before, after, span=1.0)
    lost, gained = (task.flips + drop) / 2, (task.flips - drop) / 2
    cells = [task.baseline - lost, lost, gained, 1 - task.baseline - gained]
    return statistics.PairedCounts(*map(float, random.multinomial(task.documents, cells)))


def simulate(draws: int, seed: int = 0) -> list[dict[str, Any]]:
    """Count states by true average drop."""
    random = np.random.default_rng(seed)
    profile = policy.read_profile("general")
    rows: list[dict[str, Any]] = []
    for true in TRUE_DROPS:
        states: Counter[str] = Counter()
        covered = 0
        for _ in range(draws):
            # The same relative drop on each task is the average's relative drop.
            found = statistics.average_drop(
                [draw(task, true / 100 * task.baseline, random) for task in TASKS]
            )
            low, high = (100 * end for end in found.relative_bounds)
            covered += low <= true <= high
            drop = verdict.Drop(100 * found.relative, low, high)
            states[verdict.decide(profile, drop, []).state] += 1
        shares = {state: states[state] / draws for state in policy.STATES if states[state]}
        rows.append({"true_drop": true, "states": shares, "covered_90": covered / draws})
    return rows


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    where = environment("scipy", "numpy")
    rows = simulate(args.draws)
    profile = policy.read_profile("general")
    at_edge = next(row for row in rows if row["true_drop"] == profile.accepts)
    wrong = sum(
        share
        for state, share in at_edge["states"].items()
        if state in (policy.SHIP, policy.ACCEPTABLE)
    )
    error = 3 * (_ALLOWED * (1 - _ALLOWED) / args.draws) ** 0.5
    result = {
        **where,
        "command": f"python benchmarks/decisions.py --draws {args.draws}",
        "profile": profile.name,
        "accepts": profile.accepts,
        "tasks": [task._asdict() for task in TASKS],
        "draws": args.draws,
        "false_support": wrong,
        "allowed": _ALLOWED + error,
        "holds": wrong <= _ALLOWED + error,
        "rows": rows,
    }
    write_result(RESULT, result)


if __name__ == "__main__":
    main()
