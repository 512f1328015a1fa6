"""What becomes of a run when something fails at a random time: the table of faults and outcomes.

    python benchmarks/faults.py [--runs 10] [--fault NAME ...]

Writes results/faults.json: `rows` of fault, runs, lost, duplicated, changed, with those of
`resume.py` behind them. A fault that is run again replaces its row. Exits 1 if anything was lost,
duplicated or changed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

import pairs
import replica_faults
from environment import RESULTS, environment, write_result

# Name -> where it is run.
FAULTS = dict.fromkeys(replica_faults.FAULTS, replica_faults.ReplicaFaults)


def measure(fault: str, where: Any, runs: int, seed: int) -> dict[str, Any]:
    """Run a fault some times; return its row."""
    randoms = random.Random(f"{seed} {fault}")
    outcomes = [where.run(fault, randoms) for _ in range(runs)]
    row: dict[str, Any] = {"fault": fault, "runs": runs}
    for name in ("lost", "duplicated", "changed"):
        row[name] = sum(getattr(outcome, name) for outcome in outcomes)
    print(row, flush=True)
    return row


def of_the_run() -> list[dict[str, Any]]:
    """Return what `resume.py` has found: faults of the whole run and of its response cache."""
    path = RESULTS / "resume.json"
    if not path.exists():
        return []
    found: dict[str, Any] = json.loads(path.read_text())
    where = {key: found[key] for key in ("date", "commit", "command")}
    names = ("fault", "runs", "lost", "duplicated", "changed")
    return [{name: row[name] for name in names} | where for row in found["rows"]]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="of each fault")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only these")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chosen = args.fault or list(FAULTS)
    result: dict[str, Any] = environment("ray")
    result["command"] = f"python benchmarks/faults.py --runs {args.runs} --seed {args.seed}"
    result["rows"] = []
    for place in dict.fromkeys(FAULTS[fault] for fault in chosen):
        where = place()
        result["rows"] += [
            measure(fault, where, args.runs, args.seed)
            for fault in chosen
            if FAULTS[fault] is place
        ]
        where.close()
    path = RESULTS / "faults.json"
    document = pairs.joined(path, result, FAULTS, key="fault")
    document["rows"] += of_the_run()
    write_result(path, document)
    if any(row[name] for row in result["rows"] for name in ("lost", "duplicated", "changed")):
        sys.exit(1)


if __name__ == "__main__":
    main()
