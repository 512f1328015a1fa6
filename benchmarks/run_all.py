"""Run every speed benchmark and write the tables: an hour or two on two cores.

python benchmarks/run_all.py --data DATA --models MODELS [--row NAME] [--pairs 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import generation
import load
import loglikelihood
import pairs as paired

SCRIPTS = {
    "loglikelihood.py": [*loglikelihood.LOGLIKELIHOOD, *loglikelihood.EXTRA],
    "generation.py": list(generation.GENERATION),
    "load.py": list(load.ROWS),
}


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    paired.add_arguments(parser, [row for rows in SCRIPTS.values() for row in rows])
    args = parser.parse_args()
    here = Path(__file__).parent
    for script, rows in SCRIPTS.items():
        if script == "load.py" and args.device != "cpu":
            continue  # it counts the memory of the process
        chosen = [row for row in args.row or rows if row in rows]
        if not chosen:
            continue
        words = [sys.executable, str(here / script), "--data", str(args.data)]
        words += ["--models", str(args.models), "--pairs", str(args.pairs)]
        words += ["--threads", str(args.threads), "--device", args.device, "--shape", args.shape]
        words += ["--size", str(args.size)] if args.size else []
        words += ["--output", str(args.output)] if args.output else []
        for row in chosen if args.row else []:
            words += ["--row", row]
        subprocess.run(words, check=True)
    if not args.output:
        subprocess.run([sys.executable, str(here / "readme.py")], check=True)


if __name__ == "__main__":
    main()
